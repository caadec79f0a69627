#!/bin/bash
# Fills the registry: with the lab's own small images, and with what lies in the slot for images.
set -euo pipefail
version=$1
work=$(mktemp -d)
arch=$(dpkg --print-architecture)
mkdir -p "$work/root/bin" /build/slots/images
cp /bin/busybox "$work/root/bin/busybox"
for name in cat echo env httpd ls nc sh sleep wget; do ln -s busybox "$work/root/bin/$name"; done

# pack FILE NAME ROOT CONFIG: an image of one layer, in the slot.
pack() {
    local layer
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$3" -cf "$work/layer.tar" .
    layer=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
    echo "{\"architecture\":\"$arch\",\"os\":\"linux\",\"config\":$4,\"rootfs\":{\"type\":\"layers\",\"diff_ids\":[\"sha256:$layer\"]}}" >"$work/config.json"
    echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"$2\"],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
    tar -C "$work" -cf "/build/slots/images/$1.tar" manifest.json config.json layer.tar
}

# A stand-in for Traefik, unless the real one lies in the slot: it answers with HTTP on both ports, shows its static
# configuration and its secrets, and ends as Traefik does, after what it has begun.
traefik=v3.7.9
real=$(for archive in /build/slots/images/*.tar; do tar -xOf "$archive" manifest.json 2>/dev/null; done | grep -c "traefik:$traefik" || true)
if [ "$real" = 0 ]; then
    cp -a "$work/root" "$work/traefik"
    mkdir -p "$work/traefik/etc/traefik" "$work/traefik/www"
    for name in ln mkdir kill; do ln -s busybox "$work/traefik/bin/$name"; done
    cat >"$work/traefik/bin/traefik" <<'END'
#!/bin/sh
if [ "$1" = healthcheck ]; then exec wget -q -O /dev/null http://127.0.0.1:8082/ping; fi
ln -sfn /etc/traefik/traefik.yml /www/config
ln -sfn /run/secrets /www/secrets
echo OK >/www/ping
ids=
for listen in 80 443 127.0.0.1:8082; do
    httpd -f -vv -p $listen -h /www &
    ids="$ids $!"
done
trap 'kill $ids; sleep 1; exit 0' TERM
wait
END
    chmod 755 "$work/traefik/bin/traefik"
    pack traefik "traefik:$traefik" "$work/traefik" '{"Env":["PATH=/bin"],"Cmd":["traefik"]}'
    echo "traefik $traefik: a small HTTP server that shows what is mounted; proves ports, configs, secrets and updates of a Swarm, and nothing about Traefik, its configuration, its routes or its certificates" >>/srv/lab/stand-ins
fi

# The real one as PyPI has it, under a name of its own: tests that look at what is mounted need the other. Like a browser
# here it trusts who signed for the names of the small internet, and nobody else.
if [ -e /build/traefik ]; then
    mkdir -p "$work/real/bin" "$work/real/etc/ssl/certs" "$work/real/tmp"
    cp -a "$work/root/bin" "$work/real/"
    install -m 755 /build/traefik "$work/real/bin/traefik"
    cp /srv/lab/ca.crt "$work/real/etc/ssl/certs/ca-certificates.crt"
    pack real "postern-lab/traefik:$traefik" "$work/real" '{"Env":["PATH=/bin"],"Cmd":["traefik"]}'
fi

pack hello "postern-lab/hello:$version" "$work/root" '{"Env":["PATH=/bin"],"Cmd":["/bin/echo","hello from the lab"]}'
# A web server that says which container it is.
pack web "postern-lab/web:$version" "$work/root" '{"Env":["PATH=/bin"],"Cmd":["sh","-c","busybox mkdir /www; cat /etc/hostname >/www/index.html; trap '"'exit 0'"' TERM; httpd -f -p 8080 -h /www & wait"]}'

cat >"$work/registry.yml" <<END
version: 0.1
storage: {filesystem: {rootdirectory: /srv/lab/registry}}
http: {addr: 127.0.0.1:5000}
log: {level: warn}
END
ip link set lo up
docker-registry serve "$work/registry.yml" >/build/registry.log 2>&1 &
registry=$!
for try in $(seq 100); do
    if curl -sf -o /dev/null http://127.0.0.1:5000/v2/; then break; fi
    if ! kill -0 $registry || [ "$try" = 100 ]; then cat /build/registry.log >&2; exit 1; fi
    sleep 0.1
done
for archive in /build/slots/images/*.tar; do
    # Several names of one image are several names in the registry.
    tar -xOf "$archive" manifest.json | grep -o '"RepoTags": *\[[^]]*\]' | sed 's/^[^[]*//' | grep -o '[^]["[:space:],]*' | sort -u |
        while read -r name; do
            path=${name#docker.io/}
            case $path in */*) ;; *) path=library/$path ;; esac
            skopeo copy --quiet --insecure-policy --dest-tls-verify=false "docker-archive:$archive:$name" "docker://127.0.0.1:5000/$path"
            echo "$path" >>/srv/lab/images
        done
done
kill $registry
wait $registry || true
chown -R www-data:www-data /srv/lab/registry
rm -rf "$work"
