#!/usr/bin/env bash
# One machine with 8 GPUs, a replica on each. After a kill or a stop the same command continues the run.
set -euo pipefail

tapescope-train --preset=resnet --width=64 --data=cifar10 --data_dir="${DATA:-/data}" \
    --batch_size=1024 --epochs=30 --learning_rate=0.003 \
    --strategy=mirrored --devices=gpu:8 --collective=nccl \
    --logdir="${LOGDIR:-runs/eight_gpus}" --checkpoint_every=500 --measure_every=20
