#!/usr/bin/env bash
# Starts the trainer on a slice, in the background, and again whenever it is preempted.
#   tools/deploy/tpu_vm/start.sh --gin_file=gin_configs/coco_r50_640_6x.gin \
#     --model_dir=gs://BUCKET/run1 --gin_param="DATA_DIR = 'gs://BUCKET/coco'"
# Takes the flags of `python -m retinanet_tpu.train`; files are seen from the checkout.
# Host 0 runs the program. It drives the TPUs of all hosts, whose input pipelines run in
# the TensorFlow servers there. Settings: see common.sh.
source "$(dirname "$0")/common.sh"
need ACCELERATOR_TYPE RUNTIME_VERSION
[[ $# -gt 0 ]] || usage

flags=("$@")
variables=()
hosts=$(num_hosts)
if [[ "$hosts" -gt 1 ]]; then
  case " $*" in
    *" --model_dir=gs://"*) ;;
    *) fail "$hosts hosts share what is on gs:// only; give --model_dir=gs://BUCKET/…" ;;
  esac
  flags+=(--gin_file=gin_configs/device/tpu_pod.gin)
  flags+=("--gin_param=TPU_NAME = '$NAME'")
  # The servers hold the TPUs; the coordinator must not.
  variables+=(TPU_NAME="$NAME" TPU_LOAD_LIBRARY=0)
elif [[ "$RUNTIME_VERSION" == tpu-vm-tf-*-pjrt* ]]; then
  # With TensorFlow from pip, retinanet_tpu/startup/checks.py sets these.
  variables+=(NEXT_PLUGGABLE_DEVICE_USE_C_API=true)
  variables+=(TF_PLUGGABLE_DEVICE_LIBRARY_PATH=/lib/libtpu.so)
fi
# Two shells read this, so that what has spaces and quotes is quoted for the second.
command="$remote_root/tools/deploy/tpu_vm/on_host.sh start$(printf ' %q' "${flags[@]}")"
on_hosts 0 "env${variables[*]+ ${variables[*]}} $command"
