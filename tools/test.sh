#!/usr/bin/env bash
# Sets up .venv, then runs the linter, the type checker and the tests.
#   tools/test.sh [--quick] [ARGUMENTS OF pytest]
# --quick leaves out the tests marked `long`.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
if [ "${1:-}" = --quick ]; then
  set -- -m 'not slow and not long' "${@:2}"
fi
ruff check .
ruff format --check .
mypy
exec python -m pytest "$@"
