#!/bin/bash
# Makes the package of Cloudflare's that the lab has no real one of.
set -euo pipefail
pool=$1 version=2025.11.1
here=$(dirname "$0")
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
sed "s/%VERSION%/$version/" "$here/cloudflared.pl" >"$root/usr/bin/cloudflared"
chmod 755 "$root/usr/bin/cloudflared"
dpkg-deb --build --root-owner-group "$root" "$pool/cloudflared-linux-$arch.deb" >/dev/null
rm -rf "$root"
echo "cloudflared $version: takes its token from a file, says when it is connected, and carries one connection after the \
other to port 80, or SSH to port 22; proves nothing about Cloudflare's protocol, its configuration or its edge" >>/srv/lab/stand-ins
