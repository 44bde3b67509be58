# shellcheck shell=bash disable=SC2034,SC2153
# Functions shared by the scripts of this folder, which source this file. Settings are
# environment variables:
#   NAME              name of the slice, of your choice
#   PROJECT, ZONE     Google Cloud project and zone of the slice
#   ACCELERATOR_TYPE  v3-32, v5litepod-8, …: a value of `preflight --topology`
#   RUNTIME_VERSION   software version of the hosts; several hosts need one with -pod
#   EXTRA             extra of pyproject.toml for images without TensorFlow: tpu (default)
#                     or tpu219, see docs/guides/tpu.md
#   SPOT              1: cheaper, but may be preempted; 0 (default): reserved
# Export them once; create.sh, setup.sh, start.sh, tail.sh and stop.sh read the same ones.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
# Folder of the program on the hosts, relative to the home directory.
remote_root=retinanet_tpu

fail() {
  echo "error: $*" >&2
  exit 1
}

# need NAME…: fails unless these variables are set.
need() {
  local name
  for name in "$@"; do
    if [[ -z "${!name:-}" ]]; then
      fail "$name is not set; export $name=… (tools/deploy/tpu_vm/common.sh describes it)."
    fi
  done
}

# tpu COMMAND ARGUMENTS…: runs gcloud's command for this slice.
tpu() {
  local command=$1
  shift
  gcloud compute tpus tpu-vm "$command" "$@" --project="$PROJECT" --zone="$ZONE"
}

# on_hosts WORKERS COMMAND: runs a shell command on worker 0, or on all.
on_hosts() {
  tpu ssh "$NAME" --worker="$1" --command="$2"
}

# Prints the state (READY, PREEMPTED, …), or nothing if the slice does not exist. Fails if
# the state cannot be read.
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

# Prints the number of hosts, from the table of retinanet_tpu/xla/roofline.py.
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

# Prints the usage of a script, which is the head of its file, and fails.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

need NAME PROJECT ZONE
