#!/usr/bin/env bash
# Starts the trainer on a slice in the background; it is restarted when preempted.
#   tools/deploy/tpu_vm/start.sh --gin_file=gin_configs/coco_r50_640_30x.gin \
#     --model_dir=gs://BUCKET/run1 --gin_param="DATA_DIR = 'gs://BUCKET/coco'"
# Accepts the flags of `python -m retinanet_tpu.train`; paths are relative to the checkout.
# With EXTRA=xla-tpu every host runs the program. Else host 0 runs it and drives the TPUs of
# all hosts; the input pipelines run in the TensorFlow servers of the hosts. Settings: see
# common.sh.
source "$(dirname "$0")/common.sh"
need ACCELERATOR_TYPE RUNTIME_VERSION
[[ $# -gt 0 ]] || usage

flags=("$@")
variables=(PYTHON="$PYTHON")
hosts=$(num_hosts)
if [[ "$hosts" -gt 1 ]]; then
  case " $*" in
    *" --model_dir=gs://"*) ;;
    *) fail "$hosts hosts can share files on gs:// only; set --model_dir=gs://BUCKET/…" ;;
  esac
fi
if [[ "$EXTRA" == xla-tpu ]]; then
  flags+=(--gin_file=gin_configs/device/xla_tpu.gin)
elif [[ "$hosts" -gt 1 ]]; then
  flags+=(--gin_file=gin_configs/device/tpu_pod.gin)
  flags+=("--gin_param=TPU_NAME = '$NAME'")
  # The servers use the TPUs; the coordinator must not load them.
  variables+=(TPU_NAME="$NAME" TPU_LOAD_LIBRARY=0)
elif [[ "$RUNTIME_VERSION" == tpu-vm-tf-*-pjrt* ]]; then
  # With TensorFlow from pip, retinanet_tpu/startup/checks.py sets these variables.
  variables+=(NEXT_PLUGGABLE_DEVICE_USE_C_API=true)
  variables+=(TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so)
fi
# Two shells read this line, so spaces and quotes are escaped for the second.
command="$remote_root/tools/deploy/tpu_vm/on_host.sh start$(printf ' %q' "${flags[@]}")"
on_hosts "$(trainer_hosts)" "env ${variables[*]} $command"
