#!/bin/sh
# One machine with several GPUs: folds are trained side by side, one on each GPU.
# Usage: sh several-gpus.sh PHOTOS RUN [0,1]
set -eu
photos=$1 run=$2 devices=${3:-auto}

fieldguide check "$photos"
fieldguide fit "$photos" --out "$run" --devices "$devices" # the same command goes on after a stop
fieldguide score "$run"
