#!/bin/sh
# From nothing to a comparison: a teacher, then a student alone, with KD and with SemCKD, on data that needs no download.
set -eu
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements.txt
. scripts/env.sh

SAVE=save/demo
rm -rf "$SAVE"
COMMON="--dataset digits --batch_size 32 --seed 0 --gpu_id ${GPU_ID:-0} --save_dir $SAVE --print-freq 1000"
STUDENT="--epochs 6 --lr_decay_epochs 4,5"
RUN=digits_lr_0.05_decay_0.0005_trial_0
TEACHER=$SAVE/models/resnet20_$RUN/resnet20_best.pth

echo; echo "1/4 the teacher, resnet20"
python train_teacher.py --model resnet20 --epochs 8 --lr_decay_epochs 5,7 $COMMON
echo; echo "2/4 the student alone, resnet8"
python train_teacher.py --model resnet8 $STUDENT $COMMON
echo; echo "3/4 the student with KD"
python train_student.py --path-t "$TEACHER" --distill kd --model_s resnet8 $STUDENT $COMMON
echo; echo "4/4 the student with SemCKD"
# The published beta, 400, is for a teacher of 240 epochs; the features of a young one are larger, and so is its loss.
python train_student.py --path-t "$TEACHER" --distill semckd --model_s resnet8 -b 10 $STUDENT $COMMON

echo
python scripts/compare.py "$SAVE/models/resnet20_$RUN" "$SAVE/models/resnet8_$RUN" "$SAVE"/student_model/*_kd_* \
    "$SAVE"/student_model/*_semckd_* --figure "$SAVE/comparison.png"
