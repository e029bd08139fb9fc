#!/bin/sh
# Train a teacher and three students (alone, with KD, with SemCKD) on handwritten digits, compare them, and export the
# student with KD. Only packages are downloaded.
set -eu
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-export.txt
. scripts/env.sh

SAVE=save/demo
rm -rf "$SAVE"
COMMON="--dataset digits --batch_size 32 --seed 0 --gpu_id ${GPU_ID:-0} --save_dir $SAVE --print-freq 1000"
STUDENT="--epochs 6 --lr_decay_epochs 4,5"
RUN=digits_lr_0.05_decay_0.0005_trial_0
TEACHER=$SAVE/models/resnet20_$RUN/resnet20_best.pth

echo; echo "1/5 the teacher, resnet20"
python train_teacher.py --model resnet20 --epochs 8 --lr_decay_epochs 5,7 $COMMON
echo; echo "2/5 the student alone, resnet8"
python train_teacher.py --model resnet8 $STUDENT $COMMON
echo; echo "3/5 the student with KD"
python train_student.py --path-t "$TEACHER" --distill kd --model_s resnet8 $STUDENT $COMMON
echo; echo "4/5 the student with SemCKD"
# The published beta, 400, belongs to a teacher of 240 epochs. The features of this teacher, and so the loss, are larger.
# From beta 1 on, all stages of this student attend to one stage of the teacher.
python train_student.py --path-t "$TEACHER" --distill semckd --model_s resnet8 -b 0.1 $STUDENT $COMMON

echo
python scripts/compare.py "$SAVE/models/resnet20_$RUN" "$SAVE/models/resnet8_$RUN" "$SAVE"/student_model/*_kd_* \
    "$SAVE"/student_model/*_semckd_* --figure "$SAVE/comparison.png"
echo; echo "5/5 the student with KD as files for PyTorch and ONNX, in 32 and 8 bits"
python scripts/export_student.py "$SAVE"/student_model/*_kd_* --out "$SAVE/export" --int8 --latency
