#!/bin/sh
# The command of every method for one pair of nets, resnet32x4 -> resnet8x4 unless told otherwise, and a table of the
# results. Arguments go to each run. The teacher is TEACHER, or the published one in save/models/resnet32x4_vanilla, or
# is trained first.
#   sh scripts/run_cifar_distill.sh --gpu_id 1 --trial 2
#   MODEL_T=wrn_40_2 MODEL_S=wrn_16_2 sh scripts/run_cifar_distill.sh
set -eu
cd "$(dirname "$0")/.."
. scripts/cifar_settings.sh

TEACHER=${TEACHER:-$SAVE/models/${MODEL_T}_vanilla/ckpt_epoch_240.pth}
if [ ! -f "$TEACHER" ]; then
    TEACHER=$SAVE/models/${MODEL_T}_${DATASET}_lr_${LR}_decay_0.0005_trial_0/${MODEL_T}_best.pth
fi
if [ ! -f "$TEACHER" ]; then
    TEACHERS=$MODEL_T sh scripts/run_cifar_vanilla.sh "$@" --trial 0
fi

distil() {      # METHOD BETA [FLAG ...]
    method=$1 beta=$2
    shift 2
    echo "== $method"
    python train_student.py --path-t "$TEACHER" --model_s "$MODEL_S" --distill "$method" -r 1 -a 1 -b "$beta" \
        --learning_rate "$LR" $COMMON "$@"
}
first() { distil "$@" --init_epochs $(((EPOCHS + 7) / 8)); }     # 30 of 240 epochs for the first stage

distil kd          0     "$@"
distil hint        100   "$@"
distil attention   1000  "$@"
distil similarity  3000  "$@"
distil correlation 0.02  "$@"
distil vid         1     "$@"
distil rkd         1     "$@"
distil pkt         30000 "$@"
distil irg         0.005 "$@"
distil crd         0.8   "$@"
distil semckd      400   "$@"
distil nst         50    "$@"
distil kdsvd       1     "$@"
distil dkd         1     "$@"
first  fsp         50    "$@"
first  abound      1     "$@"
first  factor      200   "$@"

# HKD takes two passes: an auxiliary teacher is distilled with PKT, and then teaches.
echo "== hkd, pass 1: $MODEL_A learns by pkt"
distil pkt 30000 "$@" --model_s "$MODEL_A" --trial auxiliary
TEACHER=$SAVE/student_model/S:${MODEL_A}_T:${MODEL_T}_${DATASET}_pkt_r:1.0_a:1.0_b:30000.0_auxiliary/${MODEL_A}_best.pth
echo "== hkd, pass 2"
distil hkd 1 "$@"

echo
python scripts/compare.py "$SAVE/student_model/S:${MODEL_S}_T:"*"_${DATASET}_"*
