#!/bin/sh
# The command of every method for one pair of nets, resnet32x4 -> resnet8x4 unless told otherwise, and a table of the
# results. The teacher is TEACHER, or the published one in save/models/resnet32x4_vanilla, or one that
# run_cifar_vanilla.sh trained, or is trained first. Arguments go to each run, that of the teacher too.
#   sh scripts/run_cifar_distill.sh --gpu_id 1 --trial 2
#   MODEL_T=wrn_40_2 MODEL_S=wrn_16_2 METHODS="kd semckd" sh scripts/run_cifar_distill.sh
# Each method has SemCKD's weights, or those of its own paper. RepDistiller's tables leave the soft labels out and give
# FitNet another layer (-a 0 --hint_layer 2): scripts/tables/repdistiller_cifar100_same.toml, _across.toml. The weights
# of the newer methods for other nets are in scripts/tables/newer_cifar100.toml.
set -eu
cd "$(dirname "$0")/.."
. scripts/cifar_settings.sh

ALL="kd hint attention similarity correlation vid rkd pkt irg crd semckd nst kdsvd dkd ofd srrl reviewkd ickd simkd
    dist nkd catkd mlld ctkd sdd ttm wttm wkdl rld skd ofa deit fsp abound factor hkd"
ALL=$(echo $ALL)
METHODS=${METHODS:-$ALL}
for method in $METHODS; do
    case " $ALL " in *" $method "*) ;; *)
        echo "error: METHODS $method: no such method here; there are: $ALL" >&2
        exit 2
    esac
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
# Two methods were published with half and with twice the usual rate of 0.05; LR sets one rate for all methods.
RATE_MLLD='' RATE_SKD=''
case $MODEL_S in
    MobileNetV2 | ShuffleV*) ;;
    *) [ -n "$LR" ] || RATE_MLLD="--learning_rate 0.025" RATE_SKD="--learning_rate 0.1" ;;
esac
FIRST_STAGE="--init_epochs $(((EPOCHS + 7) / 8))"       # 30 of 240 epochs

failed=
distil() {      # METHOD [FLAG ...]: a method that fails for this pair is reported at the end, and the others run
    case " $METHODS " in *" $1 "*) ;; *) return 0 ;; esac
    method=$1
    shift
    echo "== $method"
    run train_student.py --path-t "$TEACHER" --model_s "$MODEL_S" --distill "$method" "$@" || failed="$failed $method"
}

distil kd          -r 1 -a 1 -b 0     "$@"
distil hint        -r 1 -a 1 -b 100   "$@"
distil attention   -r 1 -a 1 -b 1000  "$@"
distil similarity  -r 1 -a 1 -b 3000  "$@"
distil correlation -r 1 -a 1 -b 0.02  "$@"
distil vid         -r 1 -a 1 -b 1     "$@"
distil rkd         -r 1 -a 1 -b 1     "$@"
distil pkt         -r 1 -a 1 -b 30000 "$@"
distil irg         -r 1 -a 1 -b 0.005 "$@"
distil crd         -r 1 -a 1 -b 0.8   "$@"
distil semckd      -r 1 -a 1 -b 400   "$@"
distil nst         -r 1 -a 1 -b 50    "$@"
distil kdsvd       -r 1 -a 1 -b 1     "$@"
distil dkd         -r 1 -a 0 -b 1     "$@"
distil ofd         -r 1 -a 0 -b 0.001 "$@"
distil srrl        -r 1 -a 1 -b 1     "$@"
distil reviewkd    -r 1 -a 0 -b 5     "$@"
distil ickd        -r 1 -a 0 -b 2.5   "$@"
distil simkd       -r 0 -a 0 -b 1     "$@"
distil dist        -r 1 -a 0 -b 2     "$@"
distil nkd         -r 1 -a 0 -b 1     "$@"
distil catkd       -r 1 -a 0 -b 15    "$@"
distil mlld        -r 0.1 -a 0 -b 0.9 $RATE_MLLD "$@"
distil ctkd        -r 0.1 -a 0.9 -b 0 "$@"
distil sdd         -r 0.1 -a 0 -b 0.9 "$@"
distil ttm         -r 1 -a 0 -b 45    "$@"
distil wttm        -r 1 -a 0 -b 4     "$@"
distil wkdl        -r 1 -a 0 -b 1     "$@"
distil rld         -r 1 -a 0 -b 1     "$@"
distil skd         -r 0.1 -a 0 -b 0.9 $RATE_SKD "$@"
distil ofa         -r 1 -a 0 -b 1     "$@"
distil deit        -r 0.5 -a 0 -b 0.5 "$@"
distil fsp         -r 1 -a 1 -b 50  $FIRST_STAGE "$@"
distil abound      -r 1 -a 1 -b 1   $FIRST_STAGE "$@"
distil factor      -r 1 -a 1 -b 200 $FIRST_STAGE "$@"

# HKD takes two passes: an auxiliary teacher is distilled with PKT, once, and then teaches.
case " $METHODS " in *" hkd "*)
    folder=$SAVE/student_model/S:${MODEL_A}_T:${MODEL_T}_${DATASET}_pkt_r:1.0_a:1.0_b:30000.0_auxiliary
    if [ ! -f "$folder/parameters.json" ] || ! grep -q 'Total time' "$folder/parameters.json"; then
        echo "== hkd, first pass: $MODEL_A learns by pkt"
        run train_student.py --path-t "$TEACHER" --model_s "$MODEL_A" --distill pkt "$@" -r 1 -a 1 -b 30000 \
            --trial auxiliary || failed="$failed pkt-for-hkd"
    fi
    TEACHER=$folder/${MODEL_A}_best.pth
    distil hkd -r 1 -a 1 -b 1 "$@"
esac

echo
python scripts/compare.py "$SAVE/student_model/S:${MODEL_S}_T:"*"_${DATASET}_"*
if [ -n "$failed" ]; then
    echo "not run to the end:$failed" >&2
    exit 1
fi
