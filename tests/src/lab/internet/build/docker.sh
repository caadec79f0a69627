#!/bin/bash
# Makes packages with the names, versions and relations of Docker's out of Debian's engine, for one release:
# docker.sh RELEASE NUMBER. Debian's own packages cannot lie below them, as docker.io conflicts with docker-ce.
set -euo pipefail
release=$1 number=$2
in=/build/debs/$release
pool=/srv/lab/www/docker/linux/debian/dists/$release/pool/stable
arch=$(dpkg --print-architecture)
ending="-1~debian.$number~$release"
engine=29.0.0 containerd=2.1.5 buildx=0.30.0 compose=2.40.3
work=$(mktemp -d)
mkdir -p "$pool/$arch"

# What Debian's packages need, beside those that are packed here.
needs() {
    for name in "$@"; do dpkg-deb -f "$in/${name}"_*.deb Depends; done | tr ',' '\n' | sed 's/^ *//; s/ *$//' |
        grep -vE '^(docker\.io|docker-cli|containerd|runc)( |$)' | sort -u | paste -sd, | sed 's/,/, /g'
}

# Services are enabled and started when a package is configured, as Docker's do.
scripts() {
    local root=$1; shift
    cat >"$root/DEBIAN/postinst" <<END
#!/bin/sh
set -e
[ "\$1" = configure ] || exit 0
if [ -e /usr/bin/dockerd ] && ! getent group docker >/dev/null; then groupadd --system docker; fi
for unit in $*; do deb-systemd-helper unmask \$unit >/dev/null; deb-systemd-helper enable \$unit >/dev/null; done
if [ -d /run/systemd/system ]; then systemctl --system daemon-reload; deb-systemd-invoke start $* >/dev/null; fi
END
    cat >"$root/DEBIAN/prerm" <<END
#!/bin/sh
set -e
if [ "\$1" = remove ] && [ -d /run/systemd/system ]; then deb-systemd-invoke stop $* >/dev/null; fi
END
    cat >"$root/DEBIAN/postrm" <<END
#!/bin/sh
set -e
if [ "\$1" = purge ]; then for unit in $*; do deb-systemd-helper purge \$unit >/dev/null; deb-systemd-helper unmask \$unit >/dev/null; done; fi
if [ -d /run/systemd/system ]; then systemctl --system daemon-reload; fi
END
    chmod 755 "$root"/DEBIAN/{postinst,prerm,postrm}
}

# pack NAME VERSION, with further lines of the control file on standard input.
pack() {
    local root=$work/$1 file
    mkdir -p "$root/DEBIAN"
    chmod 755 "$root" "$root/DEBIAN"
    rm -rf "$root"/usr/share/{doc,man,lintian}
    {
        printf 'Package: %s\nVersion: %s\nArchitecture: %s\nMaintainer: Postern lab <lab@localhost>\n' "$1" "$2" "$arch"
        printf 'Section: admin\nPriority: optional\n'
        cat
        printf 'Description: stands in for %s of Docker in a lab\n' "$1"
    } >"$root/DEBIAN/control"
    if [ -d "$root/etc" ]; then (cd "$root" && find etc -type f | sed 's|^|/|' >DEBIAN/conffiles); fi
    file=$pool/$arch/$1_${2#*:}_$arch.deb
    dpkg-deb --build --root-owner-group -Zzstd -z1 "$root" "$file" >/dev/null
}

# A plugin of the client that only says what it is.
plugin() {
    local dir=$work/docker-$1-plugin/usr/libexec/docker/cli-plugins
    mkdir -p "$dir"
    cat >"$dir/docker-$1" <<END
#!/bin/sh
if [ "\$1" = docker-cli-plugin-metadata ]; then
    echo '{"SchemaVersion":"0.1.0","Vendor":"Postern lab","Version":"v$2","ShortDescription":"stand-in for $1"}'
    exit 0
fi
echo "docker $1: a stand-in of the lab, which does nothing" >&2
exit 1
END
    chmod 755 "$dir/docker-$1"
}

dpkg-deb -x "$in"/docker.io_*.deb "$work/docker-ce"
mkdir -p "$work/docker-ce-cli/usr/bin"
if ls "$in"/docker-cli_*.deb >/dev/null 2>&1; then
    dpkg-deb -x "$in"/docker-cli_*.deb "$work/docker-ce-cli"
    cli_needs=$(needs docker-cli)
else
    mv "$work/docker-ce/usr/bin/docker" "$work/docker-ce-cli/usr/bin/docker"
    cli_needs="libc6"
fi
for package in containerd runc; do dpkg-deb -x "$in"/${package}_*.deb "$work/containerd.io"; done

# Where Docker's packages have them.
if [ -e "$work/docker-ce/usr/sbin/dockerd" ]; then mv "$work/docker-ce/usr/sbin/dockerd" "$work/docker-ce/usr/bin/dockerd"; fi
find "$work/docker-ce" -name docker.service -exec sed -i 's|/usr/sbin/dockerd|/usr/bin/dockerd|' {} +
rm -rf "$work/docker-ce/etc/init.d"
mkdir -p "$work/containerd.io/etc/containerd" "$work/docker-ce/DEBIAN" "$work/containerd.io/DEBIAN"
echo 'disabled_plugins = ["cri"]' >"$work/containerd.io/etc/containerd/config.toml"
scripts "$work/docker-ce" docker.service docker.socket
scripts "$work/containerd.io" containerd.service
plugin buildx $buildx
plugin compose $compose

old="docker-engine, docker-engine-cs, docker.io, lxc-docker, lxc-docker-virtual-package"
pack docker-ce "5:$engine$ending" <<END
Depends: containerd.io, docker-ce-cli, $(needs docker.io)
Recommends: apparmor, ca-certificates, git, pigz, procps, xz-utils
Conflicts: docker (<< 1.5~), docker-engine, docker.io
Replaces: docker-engine
END
pack docker-ce-cli "5:$engine$ending" <<END
Depends: $cli_needs
Recommends: docker-buildx-plugin, docker-compose-plugin
Conflicts: docker (<< 1.5~), $old
Replaces: $old
Breaks: $old
END
pack containerd.io "$containerd$ending" <<END
Depends: $(needs containerd runc)
Provides: containerd, runc
Conflicts: containerd, runc
Replaces: containerd, runc
END
pack docker-buildx-plugin "$buildx$ending" </dev/null
pack docker-compose-plugin "$compose$ending" </dev/null
rm -rf "$work"

debian=$(dpkg-deb -f "$in"/docker.io_*.deb Version)
cat >>/srv/lab/stand-ins <<END
docker-ce $engine for $release: Debian's docker.io $debian under Docker's names, paths and relations; proves nothing about Docker $engine itself
docker-buildx-plugin and docker-compose-plugin for $release: empty plugins; prove only that they are installed
END
