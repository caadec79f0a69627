#!/bin/bash
# Makes all that the small internet serves, below /srv/lab: all.sh IMAGE-VERSION NAME…
set -euo pipefail
umask 022
version=$1; shift
here=/build/scripts
export GNUPGHOME=/build/private/gnupg
mkdir -p /srv/lab "$GNUPGHOME"
chmod 700 /build/private "$GNUPGHOME"
: >/srv/lab/stand-ins
: >/srv/lab/images
bash $here/trust.sh "$@"

# key NAME FILE [--armor]: a signing key, its public half in FILE, its fingerprint in /srv/lab/keys.
key() {
    gpg --batch --quiet --passphrase '' --quick-generate-key "$1" rsa3072 sign never 2>/dev/null
    gpg --batch ${3:-} --export "$1" >"$2"
    echo "$1 $(gpg --batch --with-colons --list-keys "$1" | awk -F: '$1 == "fpr" {print $10; exit}')" >>/srv/lab/keys
}

docker=/srv/lab/www/docker/linux/debian
mkdir -p $docker /srv/lab/www/cloudflare
key docker@lab.invalid $docker/gpg --armor
for one in bookworm:12 trixie:13; do
    release=${one%:*}
    pool=dists/$release/pool/stable/$(dpkg --print-architecture)
    if ls /build/slots/docker/$release/docker-ce_*.deb >/dev/null 2>&1; then
        mkdir -p "$docker/$pool"
        cp /build/slots/docker/$release/*.deb "$docker/$pool/"
    else
        bash $here/docker.sh $release "${one#*:}"
    fi
    bash $here/repository.sh $docker $release stable Docker docker@lab.invalid "$pool"
done

cloudflare=/srv/lab/www/cloudflare
key cloudflare@lab.invalid $cloudflare/cloudflare-main.gpg
pool=pool/cloudflared
mkdir -p $cloudflare/cloudflared/$pool
if ls /build/slots/cloudflared/*.deb >/dev/null 2>&1; then
    cp /build/slots/cloudflared/*.deb $cloudflare/cloudflared/$pool/
else
    bash $here/cloudflared.sh $cloudflare/cloudflared/$pool
fi
for suite in any bookworm trixie; do
    bash $here/repository.sh $cloudflare/cloudflared $suite main cloudflared cloudflare@lab.invalid $pool
done
gpgconf --kill all
cat >>/srv/lab/stand-ins <<'END'
Let's Encrypt, staging and production: one Pebble, its own test server; proves the protocol and the challenge by DNS, and nothing about limits, policies or chains of theirs
api.cloudflare.com: the calls of an ACME client, for one token and one zone; proves that the token arrives and what is done with it, and nothing about Cloudflare's scopes, limits or other answers
api.digitalocean.com, api.hetzner.cloud, api.vultr.com, api.linode.com, api.bunny.net: the calls that lego makes to set a TXT record and to take it away, each for one token and one zone; proves that each token arrives by the name that Traefik reads and that it is used, and nothing about scopes, limits, delays or other answers of theirs
END
bash $here/images.sh "$version"
chmod -R a+rX /srv/lab/www
