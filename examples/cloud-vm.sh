#!/bin/sh
# A rented machine that may be taken away: photos go up, the run comes down, also half done.
# Usage: sh cloud-vm.sh USER@MACHINE PHOTOS RUN
# The same command again, with another machine too, goes on from the last checkpoint.
set -eu
machine=$1 photos=$2 run=$3

bring() {
    rsync --archive "$machine":run/ "$run"/
}

ssh "$machine" 'test -x fieldguide/bin/fieldguide ||
    { python3 -m venv fieldguide && fieldguide/bin/pip install fieldguide; }'
rsync --archive "$photos"/ "$machine":photos/
test ! -d "$run" || rsync --archive "$run"/ "$machine":run/
while sleep 600; do bring; done & # what is done so far, every ten minutes
trap 'kill $!; bring' EXIT
ssh "$machine" fieldguide/bin/fieldguide fit photos --out run --checkpoint-minutes 5
