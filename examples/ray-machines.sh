#!/bin/sh
# Several machines that share a disk: folds are jobs of a Ray cluster.
# Needs on every machine: the same Python, `pip install 'fieldguide[cluster]'`, the photos and the
# run under the same path, ssh without a password, and the same token in ~/.ray/auth_token if Ray
# asks for one (`ray get-auth-token --generate` makes it).
# Usage: sh ray-machines.sh PHOTOS RUN FIRST-MACHINE OTHER-MACHINE...
set -eu
photos=$1 run=$2 first=$3
shift 3

ssh "$first" ray start --head --port=6379 --disable-usage-stats
for machine in "$@"; do
    ssh "$machine" ray start --address="$first:6379" --disable-usage-stats
done

ssh "$first" fieldguide fit "$photos" --out "$run" --cluster "$first:6379"

for machine in "$@" "$first"; do
    ssh "$machine" ray stop
done
