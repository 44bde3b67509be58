#!/usr/bin/env bash
# Creates a slice of TPUs. A slice that is ready is kept; a preempted one is replaced.
#   tools/deploy/tpu_vm/create.sh [FLAGS of `gcloud compute tpus tpu-vm create`]
# Settings: see common.sh.
source "$(dirname "$0")/common.sh"
need ACCELERATOR_TYPE RUNTIME_VERSION

hosts=$(num_hosts)
versions="gcloud compute tpus tpu-vm versions list --zone=$ZONE"
if [[ "$hosts" -gt 1 && "$EXTRA" != xla-tpu && "$RUNTIME_VERSION" != *-pod* ]]; then
  # Only these versions run a TensorFlow server on each host. The coordinator needs them.
  fail "$ACCELERATOR_TYPE has $hosts hosts and requires a RUNTIME_VERSION with -pod," \
    "not $RUNTIME_VERSION; $versions"
fi
if [[ "$hosts" -eq 1 && "$RUNTIME_VERSION" == *-pod* ]]; then
  # Such a server would occupy the TPU, so that the trainer cannot use it.
  fail "$ACCELERATOR_TYPE has one host and requires a RUNTIME_VERSION without -pod," \
    "not $RUNTIME_VERSION; $versions"
fi
spot=()
case "${SPOT:-0}" in
  0) ;;
  1) spot=(--spot) ;;
  *) fail "SPOT is $SPOT; set it to 1 or 0." ;;
esac

state=$(slice_state)
case "$state" in
  READY)
    echo "$NAME exists and is ready."
    exit
    ;;
  PREEMPTED | TERMINATED)
    # Such a slice cannot be restarted. Nothing is lost: runs are saved in a bucket.
    echo "$NAME is $state: deleting it"
    tpu delete "$NAME" --quiet
    ;;
  "") ;;
  *) fail "$NAME is $state; wait until it is READY, or delete it: stop.sh --delete" ;;
esac
tpu create "$NAME" --accelerator-type="$ACCELERATOR_TYPE" \
  --version="$RUNTIME_VERSION" ${spot[@]+"${spot[@]}"} "$@"
echo "$NAME is ready: $ACCELERATOR_TYPE, hosts: $hosts. Next: tools/deploy/tpu_vm/setup.sh"
