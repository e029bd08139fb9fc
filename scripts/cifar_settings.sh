# Sourced by run_cifar_vanilla.sh and run_cifar_distill.sh from the repository's root. Every value may be set outside:
#   DATASET=digits EPOCHS=3 sh scripts/run_cifar_distill.sh
DATASET=${DATASET:-cifar100}
EPOCHS=${EPOCHS:-240}
SAVE=${SAVE:-./save}
if [ "$DATASET" = digits ]; then        # small nets, so that the whole list takes minutes on a CPU
    MODEL_T=${MODEL_T:-resnet20} MODEL_S=${MODEL_S:-resnet8} MODEL_A=${MODEL_A:-resnet14} LR=${LR:-0.005}
    BATCH=${BATCH:-16}
    TEACHERS=${TEACHERS:-"resnet20 wrn_16_1"}
else
    MODEL_T=${MODEL_T:-resnet32x4} MODEL_S=${MODEL_S:-resnet8x4} MODEL_A=${MODEL_A:-resnet8x4_double} LR=${LR:-0.05}
    TEACHERS=${TEACHERS:-"wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50"}
fi
# The learning rate falls after 5/8, 6/8 and 7/8 of the epochs: 150, 180 and 210 of 240.
decay() { e=$((EPOCHS * $1 / 8)); [ "$e" -ge 1 ] && echo "$e" || echo 1; }
BATCH=${BATCH:-64}
COMMON="--batch_size $BATCH --dataset $DATASET --epochs $EPOCHS --lr_decay_epochs $(decay 5),$(decay 6),$(decay 7) --save_dir $SAVE"
