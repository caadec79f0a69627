#!/bin/bash
# Makes the lab's certificate authority and one certificate for all names given. Only what a server needs goes to
# /srv/lab; the authority's key stays in /build/private.
set -euo pipefail
private=/build/private
tls=/srv/lab/tls
mkdir -p "$private" "$tls"
chmod 700 "$private" "$tls"
curve="-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc"
openssl req -x509 $curve -days 3650 -subj "/CN=Postern lab CA" -keyout "$private/ca.key" -out /srv/lab/ca.crt \
    -addext basicConstraints=critical,CA:true,pathlen:0 -addext keyUsage=critical,keyCertSign,cRLSign
names=$(printf ',DNS:%s' "$@")
openssl req $curve -subj "/CN=Postern lab" -keyout "$tls/server.key" -out "$private/server.csr"
openssl x509 -req -in "$private/server.csr" -days 3650 -CA /srv/lab/ca.crt -CAkey "$private/ca.key" -set_serial "0x$(openssl rand -hex 8)" \
    -out "$tls/server.crt" -extfile <(printf '%s\n' basicConstraints=critical,CA:false \
    keyUsage=critical,digitalSignature extendedKeyUsage=serverAuth "subjectAltName=${names#,}") 2>/dev/null
