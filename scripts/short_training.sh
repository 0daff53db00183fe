#!/usr/bin/env bash
# A training on a machine with an accelerator, without a network, that is at hand for half an hour.
#
#   scripts/short_training.sh pack PHOTOGRAPHS...   here: photographs and wheels into the ignored folder .pack
#   scripts/short_training.sh gather                there: what .pack holds onto the disk; can be repeated with other photographs
#                                                   (numpy, Pillow, ONNX Runtime, torch and torchvision must be there)
#   scripts/short_training.sh start MINUTES [...]   there: starts the training, which runs on after this returns; options of `vqcodec train`
#   scripts/short_training.sh show                  there: how far it is, and whether the accelerator is busy
#   scripts/short_training.sh collect FOLDER        there: model, logs and sample pictures, in files below 16 MiB
set -euo pipefail
cd "$(dirname "$0")/.."
work=${WORK:-/tmp/vqcodec-training}
python=${PYTHON:-python3}

case ${1:-} in
pack)
    shift
    rm -rf .pack && mkdir -p .pack/wheels
    "$python" -m pip download --quiet --no-deps --dest .pack/wheels \
        'constriction>=0.5,<0.6' safetensors 'onnx>=1.19,<2' 'onnxscript>=0.5,<1' onnx-ir ml-dtypes 'threadpoolctl>=3.5,<4' \
        'click>=8.1,<9'
    tar --create --file .pack/photographs.tar "$@"
    du -sh .pack/*
    ;;
gather)
    mkdir -p "$work/photographs/$(sha256sum .pack/photographs.tar | cut -c1-8)"
    tar --extract --file .pack/photographs.tar --directory "$work/photographs/$(sha256sum .pack/photographs.tar | cut -c1-8)"
    "$python" -m pip install --quiet --no-index --no-deps .pack/wheels/*.whl
    find "$work/photographs" -type f | wc -l
    ;;
start)
    minutes=$2
    shift 2
    setsid nohup "$python" -m vqcodec.cli train "$work/photographs" --out "$work/model" --max-minutes "$minutes" --resume "$@" \
        >"$work/log" 2>&1 </dev/null &
    ;;
show)
    tail -n 5 "$work/log"
    nvidia-smi --query-gpu=utilization.gpu,memory.used --format=csv || true
    ;;
collect)
    mkdir -p "$2"
    cp "$work"/model/*.{json,onnx,safetensors} "$work"/model/checkpoints/*.{csv,png} "$work/log" "$2" 2>/dev/null || true
    (cd "$2" && for file in *.safetensors; do
        [ "$(stat -c %s "$file")" -lt 16000000 ] || { split -b 16000000 "$file" "$file." && rm "$file"; } # join again with cat
    done && tar --create --gzip --file notes.tar.gz --remove-files -- *.csv *.png log *.json *.onnx)
    ls -l "$2"
    ;;
*)
    sed -n '2,8s/^# *//p' "$0"
    exit 2
    ;;
esac
