#!/bin/sh
# Makes ops/certs/: a CA of the pool's own and a certificate of it for these addresses and names of this machine.
#     sh ops/new-certs.sh 192.168.1.10 [head.example …]        OFFLOAD_CERTS names another folder
# GPU hosts get ca.crt and nothing else.  The CA's key is thrown away: new addresses need new certificates.
set -eu
[ $# -gt 0 ] || { echo "usage: $0 ADDRESS [NAME…]" >&2; exit 2; }
folder=${OFFLOAD_CERTS:-$(dirname "$0")/certs}
[ ! -e "$folder/server.key" ] || { echo "$folder holds certificates already; remove it first" >&2; exit 1; }
mkdir -p "$folder"
chmod 0700 "$folder"
names=
for name; do
    case $name in
    *[!0-9.]*) case $name in *:*) kind=IP ;; *) kind=DNS ;; esac ;;
    *) kind=IP ;;
    esac
    names="$names${names:+,}$kind:$name"
done
secret=$(mktemp -d)
trap 'rm -rf "$secret"' EXIT
new() { openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -sha256 "$@" 2>/dev/null; }
new -x509 -days 3650 -subj "/CN=Offload pool CA" -addext "basicConstraints=critical,CA:TRUE" \
    -addext "keyUsage=critical,keyCertSign,cRLSign" -keyout "$secret/ca.key" -out "$folder/ca.crt"
new -subj "/CN=$1" -keyout "$folder/server.key" -out "$secret/server.csr"
printf 'subjectAltName=%s\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\n' "$names" >"$secret/extensions"
openssl x509 -req -in "$secret/server.csr" -CA "$folder/ca.crt" -CAkey "$secret/ca.key" -CAcreateserial \
    -days 825 -sha256 -extfile "$secret/extensions" -out "$folder/server.crt" 2>/dev/null
rm -f "$folder/ca.srl"
# containers run as other users; the folder is its owner's, and only the files are mounted
chmod 0644 "$folder"/*
echo "made $folder for $names; GPU hosts get $folder/ca.crt" >&2
