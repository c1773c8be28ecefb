#!/bin/sh
# Runs at each `up`, when the first orchestrator serves: a token for the sidecar of the agent `hello`, which uses it when
# its certificate has expired, and profiles of a client (the default) and an operator for the service `client`.
set -eu
umask 077
token() { antiphon certs token --authority /etc/antiphon/authority --address orchestrator-1:7443 --ttl 24h "$@"; }
token --kind sidecar --name hello --agent hello --capability 'hello.*' >/var/lib/antiphon-sidecar/token
for profile in default operator; do
  kind=client
  [ "$profile" = default ] || kind=$profile
  token --kind "$kind" --name "$kind" | antiphon certs join - --profile "$profile"
done
