#!/bin/sh
# Run every method for one pair of nets, resnet32x4 -> resnet8x4 unless MODEL_T and MODEL_S say otherwise, and print a
# table of the results. The teacher is TEACHER, or the published one in save/models/resnet32x4_vanilla, or one that
# run_cifar_vanilla.sh trained; without any, it is trained first. Arguments go to each run, also the teacher's.
#   sh scripts/run_cifar_distill.sh --gpu_id 1 --trial 2
#   MODEL_T=wrn_40_2 MODEL_S=wrn_16_2 METHODS="kd semckd" sh scripts/run_cifar_distill.sh
# Each method has its published weights; docs/methods.md lists them. RepDistiller's tables leave the soft labels out and
# give FitNet another layer (-a 0 --hint_layer 2): scripts/tables/repdistiller_cifar100_same.toml, _across.toml. Weights
# for other pairs of nets are in scripts/tables/newer_cifar100.toml.
set -eu
cd "$(dirname "$0")/.."
. scripts/cifar_settings.sh

# methods: written by scripts/write_docs.py
ALL="kd hint attention similarity correlation vid rkd pkt irg crd semckd nst fsp abound factor kdsvd dkd ofd srrl reviewkd ickd simkd dist nkd catkd mlld ctkd sdd ttm wttm wkdl wkdf ikl gkl rld skd ofa deit abkd srd vkd ldrld luminet tekap nd hkd"
FIRST_STAGE="fsp abound factor"
PKT_WEIGHTS="-r 1.0 -a 1.0 -b 30000.0" PKT_NAME="pkt_r:1.0_a:1.0_b:30000.0"
# end of methods
METHODS=${METHODS:-$ALL}
is_in() { case " $2 " in *" $1 "*) ;; *) return 1 ;; esac; }      # WORD LIST

for method in $METHODS; do
    is_in "$method" "$ALL" || { echo "error: METHODS $method: no such method here; there are: $ALL" >&2; exit 2; }
done
if [ -n "${TEACHER:-}" ] && [ ! -f "$TEACHER" ]; then
    echo "error: TEACHER $TEACHER: no such file; give a checkpoint, NAME.pth" >&2
    exit 2
fi

trained() { ls -d "$SAVE/models/${MODEL_T}_${DATASET}_lr_"*/"${MODEL_T}_best.pth" 2>/dev/null | head -n 1; }
TEACHER=${TEACHER:-$SAVE/models/${MODEL_T}_vanilla/ckpt_epoch_240.pth}
[ -f "$TEACHER" ] || TEACHER=$(trained)
if [ -z "$TEACHER" ]; then
    run train_teacher.py --model "$MODEL_T" "$@"
    TEACHER=$(trained)
fi

# HKD's teacher is an auxiliary net, which learns from TEACHER by PKT, once.
AUXILIARY=$SAVE/student_model/S:${MODEL_A}_T:${MODEL_T}_${DATASET}_${PKT_NAME}_auxiliary
train_auxiliary() {
    [ -f "$AUXILIARY/parameters.json" ] && grep -q 'Total time' "$AUXILIARY/parameters.json" && return
    echo "== hkd, first pass: $MODEL_A learns by pkt"
    run train_student.py --path-t "$TEACHER" --model_s "$MODEL_A" --distill pkt "$@" $PKT_WEIGHTS --trial auxiliary
}

# MLLD and SKD were published with half and twice the usual rate of 0.05. LR sets one rate for all methods.
uses_usual_rate() { case $MODEL_S in MobileNetV2 | ShuffleV*) return 1 ;; esac; [ -z "$LR" ]; }

failed=
for method in $METHODS; do      # a method that fails for this pair is reported at the end, and the others run
    teacher=$TEACHER flags=
    case $method in
        mlld) ! uses_usual_rate || flags="--learning_rate 0.025" ;;
        skd) ! uses_usual_rate || flags="--learning_rate 0.1" ;;
        hkd)
            train_auxiliary "$@" || failed="$failed pkt-for-hkd"
            teacher=$AUXILIARY/${MODEL_A}_best.pth ;;
    esac
    ! is_in "$method" "$FIRST_STAGE" || flags="--init_epochs $(((EPOCHS + 7) / 8))"       # 30 of 240 epochs
    echo "== $method"
    run train_student.py --path-t "$teacher" --model_s "$MODEL_S" --distill "$method" $flags "$@" ||
        failed="$failed $method"
done

echo
python scripts/compare.py "$SAVE/student_model/S:${MODEL_S}_T:"*"_${DATASET}_"*
if [ -n "$failed" ]; then
    echo "not run to the end:$failed" >&2
    exit 1
fi
