# shellcheck shell=bash disable=SC2034,SC2153
# Shared by the scripts of this folder, which source it. Settings are variables:
#   NAME              of the slice, your choice
#   PROJECT, ZONE     of Google Cloud, where it is or shall be
#   ACCELERATOR_TYPE  v3-32, v5litepod-8, …: what `preflight --topology` takes
#   RUNTIME_VERSION   the software of its hosts; for several hosts one with -pod
#   EXTRA             of pyproject.toml for images without TensorFlow: tpu (default) or tpu219,
#                     see docs/guides/tpu.md
#   SPOT              1: may be taken away and costs less; 0 (default): yours
# export them once; create.sh, setup.sh, start.sh, tail.sh and stop.sh need the same.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
# Where setup.sh puts the program on the hosts, seen from their home directories.
remote_root=retinanet_tpu

fail() {
  echo "error: $*" >&2
  exit 1
}

# need NAME…: these variables must be set.
need() {
  local name
  for name in "$@"; do
    if [[ -z "${!name:-}" ]]; then
      fail "$name is not set; export $name=… (tools/deploy/tpu_vm/common.sh says what it is)."
    fi
  done
}

# tpu COMMAND ARGUMENTS…: gcloud's command for this slice.
tpu() {
  local command=$1
  shift
  gcloud compute tpus tpu-vm "$command" "$@" --project="$PROJECT" --zone="$ZONE"
}

# on_hosts WORKERS COMMAND: a shell command on worker 0, or on all.
on_hosts() {
  tpu ssh "$NAME" --worker="$1" --command="$2"
}

# Prints READY, PREEMPTED, …; nothing if there is no such slice. Fails if nobody answers.
slice_state() {
  local errors status=0
  errors=$(mktemp)
  if ! tpu describe "$NAME" --format='value(state)' 2>"$errors" &&
    ! grep --quiet NOT_FOUND "$errors"; then
    cat "$errors" >&2
    status=1
  fi
  rm "$errors"
  return $status
}

# Prints how many hosts the slice has, by the table of retinanet_tpu/xla/roofline.py.
num_hosts() {
  PYTHONPATH=$root python3 - "$ACCELERATOR_TYPE" <<'END'
import sys

from retinanet_tpu.xla import roofline

try:
    print(roofline.accelerator(sys.argv[1]).num_hosts)
except ValueError as error:
    sys.exit(f"error: ACCELERATOR_TYPE is no slice: {error}")
END
}

# Says that this is no way to call a script, and how to: the head of its file.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

need NAME PROJECT ZONE
