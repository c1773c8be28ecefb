#!/bin/sh
# Certificates for what orchestrators talk to, and for them as its clients: an authority of its own, apart from that of
# the mesh, whose names mean something else.
#
#   certificates.sh FOLDER NAME[=HOST,HOST…] …
#   certificates.sh tls etcd-1=etcd-1.example postgres=db.example antiphon
#
# Makes FOLDER/ca.pem with ca.key, and NAME.pem with NAME.key for each name. With hosts, DNS names or IPv4 addresses, it
# is a server (that may call its peers), else a client whose user in etcd is NAME. What is there is left alone, so that
# another name can be added later. They hold for a year: begin with a new folder then, or delete NAME.pem and its key.
set -eu
umask 077
folder=$1
shift
days=365
mkdir -p "$folder"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

if [ ! -e "$folder/ca.pem" ]; then
  key "$folder/ca.key"
  openssl req -x509 -new -key "$folder/ca.key" -out "$folder/ca.pem" -days $((days * 10)) \
    -subj "/O=Antiphon/CN=backing services" -addext basicConstraints=critical,CA:TRUE,pathlen:0 \
    -addext keyUsage=critical,keyCertSign,cRLSign
fi

for word in "$@"; do
  name=${word%%=*}
  [ ! -e "$folder/$name.pem" ] || continue
  {
    echo "basicConstraints = critical, CA:FALSE"
    echo "keyUsage = critical, digitalSignature"
    echo "subjectKeyIdentifier = hash"
    echo "authorityKeyIdentifier = keyid"
    if [ "$name" = "$word" ]; then
      echo "extendedKeyUsage = clientAuth"
    else
      echo "extendedKeyUsage = serverAuth, clientAuth"
      printf 'subjectAltName = '
      echo "${word#*=}" | tr ',' '\n' | sed -E 's/^[0-9.]+$/IP:&/; t; s/^/DNS:/' | paste -sd, -
    fi
  } >"$scratch/extensions"
  key "$folder/$name.key"
  openssl req -new -key "$folder/$name.key" -subj "/O=Antiphon/CN=$name" -out "$scratch/request"
  openssl x509 -req -in "$scratch/request" -CA "$folder/ca.pem" -CAkey "$folder/ca.key" -days "$days" \
    -set_serial "0x$(openssl rand -hex 16)" -extfile "$scratch/extensions" -out "$folder/$name.pem" 2>"$scratch/said" || { cat "$scratch/said" >&2; exit 1; }
done
