#!/bin/sh
# How much do images without labels improve the student? CIFAR-10 as an image folder, data/cifar10/{train,test}/CLASS/*.
# The teacher learns from all labels, the students from the labels of a tenth; all 50,000 training images are the
# unlabelled ones. Three seeds each of: the student alone, kd, kd with the unlabelled images, and embed before training
# alone. Arguments go to each run; after an interruption the same command continues.
#   sh scripts/run_unlabelled.sh --compile
#   DATA=data/cifar10 SAVE=save/unlabelled SEEDS="1 2 3" sh scripts/run_unlabelled.sh --gpu_id 1
set -eu
cd "$(dirname "$0")/.."
DATA=${DATA:-data/cifar10} SAVE=${SAVE:-save/unlabelled} SEEDS=${SEEDS:-1 2 3}
TEACHER=$SAVE/models/resnet20_folder_lr_0.05_decay_0.0005_trial_0/resnet20_best.pth

run() {         # SCRIPT FLAG ...
    script=$1
    shift
    python "$script" --save_dir "$SAVE" --batch_size 64 --learning_rate 0.05 --resume auto "$@"
}

labelled() {    # SCRIPT FLAG ...: a run of 40 epochs on the tenth with labels
    script=$1
    shift
    run "$script" --dataset folder --data_dir "$DATA" --train_fraction 0.1 --epochs 40 --lr_decay_epochs 25,30,35 \
        --seed "$seed" "$@"
}

run train_teacher.py --model resnet20 --dataset folder --data_dir "$DATA" --epochs 30 --lr_decay_epochs 19,23,27 \
    --seed 1 "$@"
for seed in $SEEDS; do
    labelled train_teacher.py --model resnet8 --trial "$seed" "$@"
    labelled train_student.py --path-t "$TEACHER" --model_s resnet8 --distill kd --trial "$seed" "$@"
    labelled train_student.py --path-t "$TEACHER" --model_s resnet8 --distill kd --trial "unlabelled-$seed" \
        --unlabelled "$DATA/train" --unlabelled_batch 192 "$@"
    run train_student.py --path-t "$TEACHER" --model_s resnet8 --distill embed --trial "$seed" --seed "$seed" \
        --dataset unlabelled --unlabelled "$DATA/train" --epochs 10 --lr_decay_epochs 6,8,9 "$@"
    labelled train_teacher.py --model resnet8 --trial "embed-$seed" --initial_checkpoint \
        "$SAVE/student_model/S:resnet8_T:resnet20_unlabelled_embed_r:0.0_a:0.0_b:1.0_$seed/resnet8_best.pth" "$@"
done
python scripts/compare.py "$SAVE"
