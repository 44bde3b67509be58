#!/usr/bin/env bash
# Copies this checkout, including edits and new files, to all hosts and installs it there.
#   tools/deploy/tpu_vm/setup.sh
# Run it again after a change. Images named tpu-vm-tf-… keep their own TensorFlow and
# protobuf; cloud-tpu-client alone would downgrade protobuf to 3. Other images get the
# packages of the extra $EXTRA. Finally it imports TensorFlow like the trainer. Settings:
# see common.sh.
source "$(dirname "$0")/common.sh"
need RUNTIME_VERSION
[[ $# -eq 0 ]] || usage

extra=${EXTRA:-tpu}
case "$extra" in
  tpu | tpu219) ;;
  *) fail "EXTRA is $extra; set it to tpu (TensorFlow 2.20) or tpu219." ;;
esac
case "$RUNTIME_VERSION" in
  tpu-vm-tf-*) packages="-e . 'cloud-tpu-client>=0.10' 'protobuf>=5.28'" ;;
  *) packages="-e '.[$extra]'" ;;
esac
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git -C "$root" ls-files -z --cached --others --exclude-standard |
  tar -C "$root" --null -czf "$archive" -T -
tpu scp "$archive" "$NAME:$remote_root.tar.gz" --worker=all
# TensorFlow's version must be the same on all hosts; the last line of each prints it.
on_hosts all "set -e
mkdir -p $remote_root
tar -xzf $remote_root.tar.gz -C $remote_root
cd $remote_root
python3 -m pip install --quiet --disable-pip-version-check $packages
TF_CPP_MIN_LOG_LEVEL=2 python3 -c 'import retinanet_tpu.startup.tpu
import tensorflow as tf
print(\"TensorFlow\", tf.__version__)' || {
  echo \"error: TensorFlow cannot be imported on \$(hostname). If a trainer runs there,\" \
    \"stop it first: tools/deploy/tpu_vm/stop.sh. Else see docs/guides/tpu.md for compatible versions.\" >&2
  exit 1
}"
echo "All hosts of $NAME are set up. Next: tools/deploy/tpu_vm/start.sh FLAGS OF THE TRAINER"
