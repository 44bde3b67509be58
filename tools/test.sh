#!/usr/bin/env bash
# Sets up .venv, then runs the linter and the tests. Arguments go to pytest.
set -euo pipefail
source "$(dirname "$0")/setup.sh"
ruff check .
ruff format --check .
exec python -m pytest "$@"
