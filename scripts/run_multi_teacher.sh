#!/bin/sh
# Is an ensemble of three nets a better teacher than one of them? CIFAR-10 as an image folder,
# data/cifar10/{train,test}/CLASS/*. Three teachers, which differ only in their seed, learn from all training images, the
# students from a tenth. Each seed of the student learns by kd and by reviewkd, from the first teacher and from all three,
# and by kd with --teacher_weights agree. Arguments go to each run; after an interruption the same command continues.
#   sh scripts/run_multi_teacher.sh --compile
#   DATA=data/cifar10 SAVE=save/multi_teacher SEEDS="1 2 3" sh scripts/run_multi_teacher.sh --gpu_id 1
set -eu
cd "$(dirname "$0")/.."
DATA=${DATA:-data/cifar10} SAVE=${SAVE:-save/multi_teacher} SEEDS=${SEEDS:-1 2 3}

run() {         # SCRIPT FLAG ...
    script=$1
    shift
    python "$script" --dataset folder --data_dir "$DATA" --save_dir "$SAVE" --batch_size 64 --learning_rate 0.05 \
        --resume auto "$@"
}

teacher() {     # SEED: the path of its checkpoint
    echo "$SAVE/models/resnet20_folder_lr_0.05_decay_0.0005_trial_$1/resnet20_best.pth"
}

student() {     # FLAG ...
    run train_student.py --model_s resnet8 --train_fraction 0.1 --epochs 40 --lr_decay_epochs 25,30,35 \
        --seed "$seed" --trial "$seed" "$@"
}

for number in 1 2 3; do
    run train_teacher.py --model resnet20 --epochs 30 --lr_decay_epochs 19,23,27 --seed "$number" --trial "$number" "$@"
done
one=$(teacher 1) two=$(teacher 2) three=$(teacher 3)
for seed in $SEEDS; do
    for method in kd reviewkd; do
        student --path-t "$one" --distill "$method" "$@"
        student --path-t "$one" "$two" "$three" --distill "$method" "$@"
    done
    # agree divides the soft-label loss by the number of teachers: -a 3 gives it the size of one teacher's
    student --path-t "$one" "$two" "$three" --distill kd --teacher_weights agree -a 3 "$@"
done
python scripts/compare.py "$SAVE/student_model"
