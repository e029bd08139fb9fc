#!/bin/sh
# Make the environment when none is active, then run the whole test suite, one process per core. Arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-dev.txt
. scripts/env.sh
python -m pytest -n auto "$@"
