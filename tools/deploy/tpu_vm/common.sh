# shellcheck shell=bash disable=SC2034,SC2153
# Functions shared by the scripts of this folder, which source this file. Settings are
# environment variables:
#   NAME              name of the slice, of your choice
#   PROJECT, ZONE     Google Cloud project and zone of the slice
#   ACCELERATOR_TYPE  v3-32, v5litepod-8, …: a value of `preflight --topology`
#   RUNTIME_VERSION   software version of the hosts; several hosts need one with -pod,
#                     xla-tpu one without TensorFlow
#   EXTRA             extra of pyproject.toml for images without TensorFlow: tpu (default),
#                     tpu219, or xla-tpu for the engine PJRT, see docs/guides/tpu.md
#   PYTHON            Python of the hosts; python3 (default). xla-tpu needs 3.11 or 3.12
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

# Prints which hosts run a trainer. With PJRT each host runs one; TensorFlow's coordinator
# on host 0 drives the others.
trainer_hosts() {
  if [[ "$EXTRA" == xla-tpu ]]; then echo all; else echo 0; fi
}

# Prints the usage of a script, which is the head of its file, and fails.
usage() {
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}

need NAME PROJECT ZONE
EXTRA=${EXTRA:-tpu}
PYTHON=${PYTHON:-python3}
case "$EXTRA" in
  tpu | tpu219) ;;
  xla-tpu)
    # Its packages would overwrite the TensorFlow of such an image, whose servers would
    # occupy the TPUs.
    [[ "${RUNTIME_VERSION:-}" != tpu-vm-tf-* ]] ||
      fail "EXTRA=xla-tpu requires a RUNTIME_VERSION without TensorFlow, such as" \
        "v2-alpha-tpuv6e, not $RUNTIME_VERSION."
    ;;
  *) fail "EXTRA is $EXTRA; set it to tpu (TensorFlow 2.20), tpu219 or xla-tpu." ;;
esac
