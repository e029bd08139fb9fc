# Settings of run_cifar_vanilla.sh and run_cifar_distill.sh, which source this file from the repository's root. The
# environment overrides every value:
#   DATASET=digits EPOCHS=3 sh scripts/run_cifar_distill.sh
# Without LR the rate is 0.05, or 0.01 for MobileNetV2, ShuffleV1 and ShuffleV2.
if [ -z "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && [ -f .venv/bin/activate ]; then
    . .venv/bin/activate
fi
DATASET=${DATASET:-cifar100}
EPOCHS=${EPOCHS:-240}
SAVE=${SAVE:-./save}
if [ "$DATASET" = digits ]; then        # small nets and a low rate: the whole list takes minutes on a CPU
    MODEL_T=${MODEL_T:-resnet20} MODEL_S=${MODEL_S:-resnet8} MODEL_A=${MODEL_A:-resnet14}
    TEACHERS=${TEACHERS:-"resnet20 wrn_16_1"}
    LR=${LR:-0.005} BATCH=${BATCH:-16}
else
    MODEL_T=${MODEL_T:-resnet32x4} MODEL_S=${MODEL_S:-resnet8x4} MODEL_A=${MODEL_A:-resnet8x4_double}
    TEACHERS=${TEACHERS:-"wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50"}
    LR=${LR:-} BATCH=${BATCH:-64}
fi

for argument; do        # the scripts need these values to find the run folders
    case $argument in
        --save[-_]dir*) variable=SAVE ;;
        --dataset*) variable=DATASET ;;
        --path[-_]t*) variable=TEACHER ;;
        --model[-_]s*) variable=MODEL_S ;;
        --distill*) variable=METHODS ;;
        *) continue ;;
    esac
    echo "error: $argument: set the variable $variable instead: $variable=... sh $0" >&2
    exit 2
done

# The learning rate falls after 5/8, 6/8 and 7/8 of the epochs: 150, 180 and 210 of 240.
part() { e=$((EPOCHS * $1 / 8)); [ "$e" -ge 1 ] && echo "$e" || echo 1; }

run() {         # SCRIPT FLAG ...: flags override the settings above; finished runs are kept
    script=$1
    shift
    python "$script" --dataset "$DATASET" --batch_size "$BATCH" --epochs "$EPOCHS" --save_dir "$SAVE" --resume auto \
        --lr_decay_epochs "$(part 5),$(part 6),$(part 7)" ${LR:+--learning_rate "$LR"} "$@"
}
