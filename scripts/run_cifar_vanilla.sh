#!/bin/sh
# Train every teacher of the tables as the paper does. Arguments go to each run.
#   sh scripts/run_cifar_vanilla.sh --gpu_id 1
#   TEACHERS=resnet32x4 sh scripts/run_cifar_vanilla.sh
set -eu
cd "$(dirname "$0")/.."
. scripts/cifar_settings.sh

for model in $TEACHERS; do
    run train_teacher.py --model "$model" "$@"
done
