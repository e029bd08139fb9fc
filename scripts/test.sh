#!/bin/sh
# Make the environment if none is active, then run all tests but the slow ones, one process per core. Arguments go to
# pytest.
set -eu
cd "$(dirname "$0")/.."
REQUIREMENTS=requirements-dev.txt
. scripts/env.sh
python -m pytest -n auto "$@"
