#!/bin/bash
# Makes the package of Cloudflare's that the lab has no real one of.
set -euo pipefail
pool=$1 version=2025.11.1
arch=$(dpkg --print-architecture)
root=$(mktemp -d)
mkdir -p "$pool" "$root/DEBIAN" "$root/usr/bin"
chmod 755 "$root"
cat >"$root/DEBIAN/control" <<END
Package: cloudflared
Version: $version
Architecture: $arch
Maintainer: Postern lab <lab@localhost>
Section: net
Priority: optional
Description: stands in for cloudflared in a lab
END
cat >"$root/usr/bin/cloudflared" <<END
#!/bin/sh
if [ "\$1" = --version ]; then echo "cloudflared version $version (a stand-in of the lab)"; exit 0; fi
echo "cloudflared: a stand-in of the lab, which carries nothing" >&2
exit 1
END
chmod 755 "$root/usr/bin/cloudflared"
dpkg-deb --build --root-owner-group "$root" "$pool/cloudflared-linux-$arch.deb" >/dev/null
rm -rf "$root"
echo "cloudflared $version: a program that only gives its version; proves nothing about a tunnel" >>/srv/lab/stand-ins
