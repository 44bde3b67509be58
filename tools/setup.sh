#!/usr/bin/env bash
# Makes .venv with this project and TensorFlow for CPUs, unless it is there already.
#   source tools/setup.sh
# A Python of your choice: PYTHON=python3.12 source tools/setup.sh
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
stamp=.venv/installed-$(cat setup.py tools/constraints.txt | cksum | cut -d' ' -f1)
if [ ! -e "$stamp" ]; then
  echo "Setting up .venv (a minute or two)"
  "${PYTHON:-python3}" -m venv .venv
  .venv/bin/pip install --quiet --disable-pip-version-check \
    --constraint tools/constraints.txt --editable '.[cpu,test]'
  touch "$stamp"
fi
source .venv/bin/activate
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
