#!/usr/bin/env bash
# Creates a slice of TPUs, or finds that it is there; one that was preempted is made anew.
#   tools/deploy/tpu_vm/create.sh [FLAGS of `gcloud compute tpus tpu-vm create`]
# Settings: see common.sh.
source "$(dirname "$0")/common.sh"
need ACCELERATOR_TYPE RUNTIME_VERSION

hosts=$(num_hosts)
versions="gcloud compute tpus tpu-vm versions list --zone=$ZONE"
if [[ "$hosts" -gt 1 && "$RUNTIME_VERSION" != *-pod* ]]; then
  # Only these run a TensorFlow server on each host, to which the coordinator connects.
  fail "$ACCELERATOR_TYPE has $hosts hosts and wants a RUNTIME_VERSION with -pod," \
    "not $RUNTIME_VERSION; $versions"
fi
if [[ "$hosts" -eq 1 && "$RUNTIME_VERSION" == *-pod* ]]; then
  # There the server would hold the TPU, and the trainer find it in use.
  fail "$ACCELERATOR_TYPE has one host and wants a RUNTIME_VERSION without -pod," \
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
    echo "$NAME is there and ready."
    exit
    ;;
  PREEMPTED | TERMINATED)
    # Such a slice cannot be started again; what a run needs lies in its bucket.
    echo "$NAME is $state: deleting what is left of it"
    tpu delete "$NAME" --quiet
    ;;
  "") ;;
  *) fail "$NAME is $state; wait until it is READY, or delete it: stop.sh --delete" ;;
esac
tpu create "$NAME" --accelerator-type="$ACCELERATOR_TYPE" \
  --version="$RUNTIME_VERSION" ${spot[@]+"${spot[@]}"} "$@"
echo "$NAME is ready: $ACCELERATOR_TYPE, hosts: $hosts. Next: tools/deploy/tpu_vm/setup.sh"
