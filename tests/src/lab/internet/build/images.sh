#!/bin/bash
# Fills the registry: with the lab's own small image, and with what lies in the slot for images.
set -euo pipefail
version=$1
work=$(mktemp -d)
mkdir -p "$work/root/bin"
cp /bin/busybox "$work/root/bin/busybox"
for name in cat echo env httpd ls nc sh sleep wget; do ln -s busybox "$work/root/bin/$name"; done
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work/root" -cf "$work/layer.tar" .
layer=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
cat >"$work/config.json" <<END
{"architecture":"$(dpkg --print-architecture)","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["/bin/echo","hello from the lab"]},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]}}
END
echo "[{\"Config\":\"config.json\",\"RepoTags\":[\"postern-lab/hello:$version\"],\"Layers\":[\"layer.tar\"]}]" >"$work/manifest.json"
mkdir -p /build/slots/images
tar -C "$work" -cf /build/slots/images/hello.tar manifest.json config.json layer.tar

# A stand-in for Traefik, unless the real one lies in the slot: it answers with HTTP on both ports, shows its static
# configuration and its secrets, and ends as Traefik does, after what it has begun.
traefik=v3.7.9
real=$(for archive in /build/slots/images/*.tar; do tar -xOf "$archive" manifest.json; done | grep -c "traefik:$traefik" || true)
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
    tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work/traefik" -cf "$work/traefik.tar" .
    layer=$(sha256sum "$work/traefik.tar" | cut -d ' ' -f 1)
    cat >"$work/traefik.json" <<END
{"architecture":"$(dpkg --print-architecture)","os":"linux","config":{"Env":["PATH=/bin"],"Cmd":["traefik"]},"rootfs":{"type":"layers","diff_ids":["sha256:$layer"]}}
END
    echo "[{\"Config\":\"traefik.json\",\"RepoTags\":[\"traefik:$traefik\"],\"Layers\":[\"traefik.tar\"]}]" >"$work/manifest.json"
    tar -C "$work" -cf /build/slots/images/traefik.tar manifest.json traefik.json traefik.tar
    echo "traefik $traefik: a small HTTP server that shows what is mounted; proves ports, configs, secrets and updates of a Swarm, and nothing about Traefik, its configuration, its routes or its certificates" >>/srv/lab/stand-ins
fi

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
