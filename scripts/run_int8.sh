#!/bin/sh
# What do 8 bits cost, and what does training with them give back? CIFAR-10 as an image folder,
# data/cifar10/{train,test}/CLASS/*: the teacher learns from all labels, each student by kd from those of a tenth, then
# once more with --qat. SAVE/NET-SEED.csv has the test accuracies in 32 and in 8 bits. After an interruption the same
# command continues.
#   sh scripts/run_int8.sh
#   DATA=data/cifar10 SAVE=save/int8 SEEDS="1 2 3" sh scripts/run_int8.sh
set -eu
cd "$(dirname "$0")/.."
DATA=${DATA:-data/cifar10} SAVE=${SAVE:-save/int8} SEEDS=${SEEDS:-1 2 3}
TEACHER=$SAVE/models/resnet20_folder_lr_0.05_decay_0.0005_trial_0/resnet20_best.pth

run() {         # SCRIPT FLAG ...
    script=$1
    shift
    python "$script" --dataset folder --data_dir "$DATA" --batch_size 64 --save_dir "$SAVE" --resume auto "$@"
}

distil() {      # NET PIXELS FLAG ...
    net=$1 pixels=$2
    shift 2
    run train_student.py --path-t "$TEACHER" --model_s "$net" --image_size "$pixels" --distill kd --train_fraction 0.1 \
        --val_fraction 0.1 --sched cosine --seed "$seed" "$@"
}

student() {     # NET PIXELS LEARNING_RATE: one student in 32 and 8 bits
    folder=$SAVE/student_model/S:$1_T:resnet20_folder_kd_r:1.0_a:1.0_b:0.0_
    distil "$1" "$2" --epochs 12 --learning_rate "$3" --trial "$seed" --compile
    distil "$1" "$2" --epochs 4 --learning_rate 0.005 --trial "qat-$seed" --qat \
        --initial_checkpoint "$folder$seed/$1_best.pth"
    python scripts/compare_int8.py "$folder$seed" "${folder}qat-$seed" --csv "$SAVE/$1-$seed.csv"
}

run train_teacher.py --model resnet20 --epochs 30 --lr_decay_epochs 19,23,27 --learning_rate 0.05 --seed 1 --compile
for seed in $SEEDS; do
    student resnet8 32 0.05
    student MobileNetV2 32 0.01
    student timm:mobilenetv3_small_050 64 0.05
done
