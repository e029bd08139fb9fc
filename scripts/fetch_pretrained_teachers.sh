#!/bin/sh
# Download RepDistiller's six CIFAR-100 teachers, or those named, to save/models/NAME_vanilla/ckpt_epoch_240.pth.
# Complete files are kept, interrupted downloads are resumed, and each file is checked before it gets its name.
#   sh scripts/fetch_pretrained_teachers.sh
#   TEACHER_URL=http://mirror/repo TEACHER_DIR=./teachers sh scripts/fetch_pretrained_teachers.sh resnet56 vgg13
set -u
cd "$(dirname "$0")/.." || exit
TEACHER_URL=${TEACHER_URL:-http://shape2prog.csail.mit.edu/repo}
TEACHER_DIR=${TEACHER_DIR:-./save/models}
PYTHON=${PYTHON:-python}
ALL="wrn_40_2 resnet56 resnet110 resnet32x4 vgg13 ResNet50"
NEWLINE='
'

is_published() {       # NAME
    for teacher in $ALL; do
        [ "$1" != "$teacher" ] || return 0
    done
    return 1
}

check() {       # FILE NAME: whether the file is complete and holds this net. Sets message to the last line of output
    message=$("$PYTHON" scripts/check_teacher.py "$1" "$2" 2>&1)
    status=$?
    message=${message##*"$NEWLINE"}
    case $status in
        0|2) return $status ;;
    esac
    echo "error: $PYTHON scripts/check_teacher.py does not run: $message" >&2     # the file itself may be good
    exit 1
}

download() {    # URL FILE: append what FILE lacks. Sets message on failure; curl's status 33: the server cannot resume
    case $tool in
        curl) message=$(curl -sSfL --connect-timeout 30 --speed-time 60 --speed-limit 1 -C - -o "$2" "$1" 2>&1) ;;
        wget) message=$(wget -nv -t 1 -T 60 -c -O "$2" "$1" 2>&1) ;;
    esac
    status=$?
    case $message in
        *' 416'*) [ "$status" = 0 ] || [ ! -s "$2" ] || return 0 ;;     # FILE lacks nothing; its check decides
    esac
    message=$(printf %s "$message" | tr '\n' ' ')
    [ -s "$2" ] || rm -f "$2"
    return $status
}

fetch() {       # NAME: fails if the teacher is still missing, and sets message to the reason
    folder=$TEACHER_DIR/${1}_vanilla
    file=$folder/ckpt_epoch_240.pth
    part=$file.part
    if [ -e "$file" ]; then
        if check "$file" "$1"; then
            echo "$message, already in $file"
            return 0
        fi
        echo "$1: set aside as $file.damaged, and fetched again (${message#error: })"
        message=$(mv -f "$file" "$file.damaged" 2>&1) || return 1
    fi
    message=$(mkdir -p "$folder" 2>&1) || return 1
    [ -s "$part" ] && resumed=yes || resumed=
    while :; do
        echo "$1: ${resumed:+resumed }from $TEACHER_URL/${1}_vanilla/ckpt_epoch_240.pth"
        if download "$TEACHER_URL/${1}_vanilla/ckpt_epoch_240.pth" "$part"; then
            if check "$part" "$1"; then
                ok=$message
                message=$(mv -f "$part" "$file" 2>&1) || return 1
                echo "$ok, in $file"
                return 0
            fi
            rm -f "$part"
        elif [ "$tool$status" = curl33 ]; then
            rm -f "$part"
        else
            return 1
        fi
        # The part may have been of another file: try once more from the beginning.
        [ "$resumed" ] || return 1
        resumed=
    done
}

[ $# -gt 0 ] || set -- $ALL
for name; do
    is_published "$name" || { echo "error: $name: no such published teacher; there are: $ALL" >&2; exit 2; }
done
if command -v curl >/dev/null; then
    tool=curl
elif command -v wget >/dev/null; then
    tool=wget
else
    echo "error: neither curl nor wget is here; install one of them" >&2
    exit 2
fi

missing=
for name; do
    if ! fetch "$name"; then
        echo "error: $name: not fetched: ${message#error: }" >&2
        missing="$missing $name"
    fi
done
[ -z "$missing" ] || { echo "error: not fetched:$missing; run this again to continue" >&2; exit 1; }
