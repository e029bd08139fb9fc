#!/bin/sh
# How much accuracy do 8 bits lose, and how much does --qat recover? Images: DATA/{train,test}/CLASS/*. The teacher is
# TEACHER, or a resnet20 trained on all training images. Each student is trained by kd on the part PART of them, then
# with --qat. SAVE/NET-SEED.csv has the test accuracies in 32 and in 8 bits. After an interruption, the same command
# continues.
#   sh scripts/run_int8.sh          # CIFAR-10 as an image folder: DATA=data/cifar10 SAVE=save/int8
#   DATA=photos SAVE=save/int8_photos TEACHER=NET_best.pth PART=1 PIXELS=64 EPOCHS=60 QAT_EPOCHS=20 SEEDS="1 2 3" \
#       sh scripts/run_int8.sh
set -eu
cd "$(dirname "$0")/.."
DATA=${DATA:-data/cifar10} SAVE=${SAVE:-save/int8} SEEDS=${SEEDS:-1 2 3}
PART=${PART:-0.1} EPOCHS=${EPOCHS:-12} QAT_EPOCHS=${QAT_EPOCHS:-4}

run() {         # SCRIPT FLAG ...
    script=$1
    shift
    python "$script" --dataset folder --data_dir "$DATA" --batch_size 64 --save_dir "$SAVE" --resume auto "$@"
}

distil() {      # NET PIXELS FLAG ...
    net=$1 pixels=$2
    shift 2
    run train_student.py --path-t "$TEACHER" --model_s "$net" --image_size "$pixels" --distill kd \
        --train_fraction "$PART" --val_fraction 0.1 --sched cosine --seed "$seed" "$@"
}

student() {     # NET PIXELS: train one student and measure it in 32 and 8 bits
    folder="$SAVE/student_model/S:$1_T:$(basename "$TEACHER" _best.pth)_folder_kd_r:1.0_a:1.0_b:0.0_"
    distil "$1" "$2" --epochs "$EPOCHS" --trial "$seed" --compile
    distil "$1" "$2" --epochs "$QAT_EPOCHS" --trial "qat-$seed" --qat \
        --initial_checkpoint "$folder$seed/$1_best.pth"
    python scripts/compare_int8.py "$folder$seed" "${folder}qat-$seed" --csv "$SAVE/$1-$seed.csv"
}

if [ -z "${TEACHER:-}" ]; then
    run train_teacher.py --model resnet20 --epochs 30 --lr_decay_epochs 19,23,27 --learning_rate 0.05 --seed 1 --compile
    TEACHER=$SAVE/models/resnet20_folder_lr_0.05_decay_0.0005_trial_0/resnet20_best.pth
fi
for seed in $SEEDS; do
    student resnet8 "${PIXELS:-32}"
    student MobileNetV2 "${PIXELS:-32}"
    student timm:mobilenetv3_small_050 "${PIXELS:-64}"
done
