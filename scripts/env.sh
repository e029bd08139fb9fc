# Make .venv if no environment is active, activate it, and install the requirements file named by REQUIREMENTS.
# demo.sh and test.sh source this file from the repository's root.
if [ -z "${VIRTUAL_ENV:-}" ] && { [ -z "${CONDA_PREFIX:-}" ] || [ "${CONDA_DEFAULT_ENV:-}" = base ]; }; then
    if [ ! -f .venv/bin/activate ]; then
        echo "making a Python environment in .venv"
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: PYTHON=/path/to/python3.12 sh scripts/demo.sh")'
        "${PYTHON:-python3}" -m venv .venv || { rm -rf .venv; exit 1; }
    fi
    . .venv/bin/activate
fi
echo "installing $REQUIREMENTS (about 5 GB the first time)"
python -m pip install --quiet --disable-pip-version-check -r "$REQUIREMENTS"
