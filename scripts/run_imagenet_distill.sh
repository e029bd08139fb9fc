#!/bin/sh
# The command of every method of the SemCKD paper for ImageNet, ResNet34 -> ResNet18. Arguments go to each run. The
# teacher is TEACHER, or torchvision's, which is downloaded when it is not there. After an interruption the same command
# continues.
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

distil() {      # METHOD BETA [FLAG ...]
    method=$1 beta=$2
    shift 2
    echo "== $method"
    python train_student.py --path-t "$TEACHER" --distill "$method" --model_s ResNet18 -r 1 -a 1 -b "$beta" --trial 0 \
        --batch_size 256 --epochs "$EPOCHS" --dataset imagenet --gpu_id "$GPU" --print-freq 100 \
        --multiprocessing-distributed --dist-url "${DIST_URL:-tcp://127.0.0.1:23333}" --num_workers 32 \
        --learning_rate 0.1 --lr_decay_epochs "$(decay 1),$(decay 2)" --weight_decay 1e-4 --save_dir "$SAVE" \
        --resume auto $LOADER "$@"
}

distil kd         0    "$@"
distil hint       100  "$@"
distil attention  1000 "$@"
distil similarity 3000 "$@"
distil vid        1    "$@"
distil semckd     50   "$@"

# HKD takes two passes: an auxiliary teacher is distilled with PKT, and then teaches.
echo "== hkd, pass 1: $MODEL_A learns by pkt"
distil pkt 30000 "$@" --model_s "$MODEL_A" --trial auxiliary
TEACHER=$(ls -t "$SAVE/student_model/S:${MODEL_A}_T:"*_pkt_*_auxiliary*"/${MODEL_A}_best.pth" | head -n 1)
echo "== hkd, pass 2"
distil hkd 1 "$@"

echo
python scripts/compare.py "$SAVE/student_model/S:ResNet18_T:"*
