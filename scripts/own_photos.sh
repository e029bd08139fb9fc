#!/bin/sh
# Train a small net on your own photographs, taught by a large one, and export it. docs/own_data.md explains each step.
#   sh scripts/own_photos.sh FOLDER [TEACHER] [STUDENT] [--epochs N] [--image_size N] [--estimate] [flags of every run]
#   SAVE=save/cats GPU_ID=1 sh scripts/own_photos.sh cats timm:resnet50 timm:mobilenetv3_large_100
# FOLDER holds CLASS/*, or train/CLASS/* and test/CLASS/*. TEACHER and STUDENT are nets, or files or folders of weights.
# After an interruption the same command continues. JOBS: runs at the same time.
set -eu
if [ ! -d "${1:-}" ]; then
    echo "error: FOLDER ${1:-}: no such folder; sh scripts/own_photos.sh FOLDER [TEACHER] [STUDENT] [flags]" >&2
    exit 2
fi
HERE=$PWD
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-export.txt
. scripts/env.sh
python -m pip install --quiet --disable-pip-version-check timm
SCRIPTS=$PWD/scripts
cd "$HERE"
SAVE=${SAVE:-save/own_photos}
TABLE=$SAVE/own_photos.toml

echo; echo "1/5 the plan, $TABLE"
python "$SCRIPTS/own_photos.py" plan "$SAVE" "$@"
case " $* " in *" --estimate "*)
    exec python "$SCRIPTS/reproduce.py" "$TABLE" --save_dir "$SAVE" --jobs "${JOBS:-1}" --dry-run --estimate ;;
esac
echo; echo "2/5 the teacher, the student alone, and distilled"
python "$SCRIPTS/reproduce.py" "$TABLE" --save_dir "$SAVE" --jobs "${JOBS:-1}" ${GPU_ID:+--gpu_id "$GPU_ID"} --retry
echo; echo "3/5 the best student by the validation set, and figures for the report"
python "$SCRIPTS/own_photos.py" best "$SAVE"
python "$SCRIPTS/report.py" "$SAVE" --figures
echo; echo "4/5 this student as files for PyTorch and ONNX"
# Exit code 2 can also mean that only the 8-bit file was left out; then config.json is newer than best.txt.
python "$SCRIPTS/export_student.py" "$(cat "$SAVE/best.txt")" --out "$SAVE/export" --int8 --latency || {
    code=$?
    [ "$SAVE/export/config.json" -nt "$SAVE/best.txt" ] || exit $code
    echo "$SAVE/export: complete without the file in 8 bits"
}
echo; echo "5/5 what it predicts for test images"
python "$SCRIPTS/predict.py" "$SAVE/export" "$SAVE/examples"
echo; cat "$SAVE/summary.txt"
