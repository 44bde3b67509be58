#!/usr/bin/env bash
# Lets the trainer save and waits until it ends; --delete then deletes the slice.
#   tools/deploy/tpu_vm/stop.sh [--delete]
# With EXTRA=xla-tpu the trainers of all hosts save together.
# Without --delete the slice remains and is billed. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
[[ $# -eq 0 || "$*" == --delete ]] || usage

state=$(slice_state)
[[ -n "$state" ]] || fail "$NAME does not exist in $ZONE of $PROJECT."
if [[ "$state" == READY ]]; then
  on_hosts "$(trainer_hosts)" "if [ -d $remote_root ]; then $remote_root/tools/deploy/tpu_vm/on_host.sh stop; fi"
fi
if [[ "$*" == --delete ]]; then
  tpu delete "$NAME" --quiet
  echo "$NAME is deleted."
else
  echo "$NAME still exists and is billed; to delete it: tools/deploy/tpu_vm/stop.sh --delete"
fi
