#!/bin/bash
# Indexes and signs one suite of an apt repository: repository.sh ROOT SUITE COMPONENT ORIGIN KEY POOL. The packages lie
# in POOL, a path below ROOT.
set -euo pipefail
root=$1 suite=$2 component=$3 origin=$4 key=$5 pool=$6
arch=$(dpkg --print-architecture)
cd "$root"
index=dists/$suite/$component/binary-$arch
mkdir -p "$index"
apt-ftparchive packages "$pool" >"$index/Packages"
gzip -9nk "$index/Packages"
apt-ftparchive -o "APT::FTPArchive::Release::Origin=$origin" -o "APT::FTPArchive::Release::Label=$origin" \
    -o "APT::FTPArchive::Release::Suite=$suite" -o "APT::FTPArchive::Release::Architectures=$arch" \
    -o "APT::FTPArchive::Release::Components=$component" release "dists/$suite" >/build/Release
mv /build/Release "dists/$suite/Release"
gpg --batch --quiet --yes --local-user "$key" --clearsign --output "dists/$suite/InRelease" "dists/$suite/Release"
gpg --batch --quiet --yes --local-user "$key" --armor --detach-sign --output "dists/$suite/Release.gpg" "dists/$suite/Release"
