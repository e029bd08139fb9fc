#!/bin/sh
# Run every method of the SemCKD paper on ImageNet, ResNet34 -> ResNet18, and print a table of the results. Arguments
# go to each run. The teacher is TEACHER, or torchvision's, which is downloaded if it is missing. After an interruption
# the same command continues.
#   sh scripts/run_imagenet_distill.sh --data_dir /data
#   GPU=0,1 EPOCHS=10 LOADER=--use-lmdb sh scripts/run_imagenet_distill.sh --batch_size 128
set -eu
cd "$(dirname "$0")/.."
SAVE=${SAVE:-./save}
GPU=${GPU:-0,1,2,3,4,5,6,7}          # one process for each
EPOCHS=${EPOCHS:-90}
LOADER=${LOADER-"--dali gpu"}       # empty: image files, decoded by worker processes
MODEL_A=ResNet18Double
if [ -n "${TEACHER:-}" ] && [ ! -f "$TEACHER" ]; then
    echo "error: TEACHER $TEACHER: no such file; give a checkpoint, NAME.pth" >&2
    exit 2
fi
if [ -z "${TEACHER:-}" ]; then
    TEACHER=./save/models/ResNet34_vanilla/resnet34_transformed.pth
    [ -f "$TEACHER" ] || python scripts/model_transform.py --torchvision resnet34 "$TEACHER"
fi

# The learning rate falls after 1/3 and 2/3 of the epochs: 30 and 60 of 90.
decay() { e=$((EPOCHS * $1 / 3)); [ "$e" -ge 1 ] && echo "$e" || echo 1; }

distil() {      # METHOD [FLAG ...]: with its published weights for ImageNet
    method=$1
    shift
    echo "== $method"
    python train_student.py --path-t "$TEACHER" --distill "$method" --model_s ResNet18 --trial 0 \
        --batch_size 256 --epochs "$EPOCHS" --dataset imagenet --gpu_id "$GPU" --print-freq 100 \
        --multiprocessing-distributed --dist-url "${DIST_URL:-tcp://127.0.0.1:23333}" --num_workers 32 \
        --learning_rate 0.1 --lr_decay_epochs "$(decay 1),$(decay 2)" --weight_decay 1e-4 --save_dir "$SAVE" \
        --resume auto $LOADER "$@"
}

for method in kd hint attention similarity vid semckd; do
    distil "$method" "$@"
done

# HKD's teacher is an auxiliary net, which learns from TEACHER by PKT.
echo "== hkd, first pass: $MODEL_A learns by pkt"
distil pkt "$@" --model_s "$MODEL_A" --trial auxiliary
TEACHER=$(ls -t "$SAVE/student_model/S:${MODEL_A}_T:"*_pkt_*_auxiliary*"/${MODEL_A}_best.pth" | head -n 1)
distil hkd "$@"

echo
python scripts/compare.py "$SAVE/student_model/S:ResNet18_T:"*
