#!/bin/sh
# Several machines that share a disk: folds are jobs of a Ray cluster.
# Needs on every machine: the same Python, `pip install 'fieldguide[cluster]'`, the photos and the
# run under the same path, and ssh without a password.
# Usage: sh ray-machines.sh PHOTOS RUN FIRST-MACHINE OTHER-MACHINE...
set -eu
photos=$1 run=$2 first=$3
shift 3

stop() {
    for machine in "$@" "$first"; do
        ssh "$machine" ray stop
    done
}
trap 'stop "$@"' EXIT

# Only who knows the token may join.
ssh "$first" 'ray get-auth-token --generate >/dev/null'
for machine in "$@"; do
    ssh "$first" cat .ray/auth_token |
        ssh "$machine" 'umask 077; mkdir -p .ray; cat >.ray/token; mv .ray/token .ray/auth_token'
done

ssh "$first" RAY_AUTH_MODE=token ray start --head --port=6379 --disable-usage-stats
for machine in "$@"; do
    ssh "$machine" RAY_AUTH_MODE=token ray start --address="$first:6379" --disable-usage-stats
done

ssh "$first" RAY_AUTH_MODE=token fieldguide fit "$photos" --out "$run" --cluster "$first:6379"
