#!/usr/bin/env bash
# Creates and activates .venv with this project and TensorFlow for CPUs.
#   source tools/setup.sh
# To choose the Python: PYTHON=python3.12 source tools/setup.sh
cd "$(dirname "${BASH_SOURCE[0]}")/.." || return 1
python=${PYTHON:-python3}
stamp=.venv/installed-$(cat setup.py pyproject.toml tools/constraints.txt | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  if ! "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 13))'; then
    echo "TensorFlow 2.20 needs Python 3.10 to 3.12, $python is $("$python" -V 2>&1);" \
      "set another one: PYTHON=python3.12 $0" >&2
    return 1
  fi
  echo "Setting up .venv (a minute or two)"
  "$python" -m venv .venv &&
    .venv/bin/pip install --quiet --disable-pip-version-check \
      --constraint tools/constraints.txt --editable '.[cpu,plots,test]' &&
    touch "$stamp" || return 1
fi
source .venv/bin/activate
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
