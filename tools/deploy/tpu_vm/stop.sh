#!/usr/bin/env bash
# Lets the trainer save, waits for its end, and with --delete gives the slice back.
#   tools/deploy/tpu_vm/stop.sh [--delete]
# Without --delete the slice stays, and costs. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
[[ $# -eq 0 || "$*" == --delete ]] || usage

state=$(slice_state)
[[ -n "$state" ]] || fail "There is no $NAME in $ZONE of $PROJECT."
if [[ "$state" == READY ]]; then
  on_hosts 0 "if [ -d $remote_root ]; then $remote_root/tools/deploy/tpu_vm/on_host.sh stop; fi"
fi
if [[ "$*" == --delete ]]; then
  tpu delete "$NAME" --quiet
  echo "$NAME is deleted."
else
  echo "$NAME is still there, and costs; tools/deploy/tpu_vm/stop.sh --delete"
fi
