#!/bin/sh
# Runs once, before everything else: the authority of the mesh, certificates for etcd and PostgreSQL and for the
# orchestrators as their clients, and the database's password; each volume gets what its service needs, and no more.
# What is there is left alone, so that a second `up` changes nothing.
set -eu
umask 077
[ -e /setup/authority/bundle.pem ] || antiphon certs init --dir /setup/authority --trust-domain mesh.example
# On another machine it would be taken away from here; nothing needs it for a year.
certificates.sh /setup/backing etcd=etcd postgres=postgres antiphon
[ -e /setup/backing/postgres.password ] || openssl rand -hex 24 | tr -d '\n' >/setup/backing/postgres.password

give() { # VOLUME OWNER FILE…
  volume=$1 owner=$2
  shift 2
  for file in "$@"; do cp "/setup/backing/$file" "/setup/$volume/$file"; done
  chown -R "$owner" "/setup/$volume"
}
give orchestrator 10001:10001 ca.pem antiphon.pem antiphon.key postgres.password
give etcd 0:0 ca.pem etcd.pem etcd.key
give postgres 999:999 ca.pem postgres.pem postgres.key postgres.password
chown -R 10001:10001 /setup/authority
