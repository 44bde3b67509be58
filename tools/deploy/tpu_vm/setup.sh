#!/usr/bin/env bash
# Copies this checkout, including edits and new files, to all hosts and installs it there.
#   tools/deploy/tpu_vm/setup.sh
# Run it again after a change. Images named tpu-vm-tf-… keep their own TensorFlow and
# protobuf; cloud-tpu-client alone would downgrade protobuf to 3. Other images get the
# packages of the extra $EXTRA. Finally it imports them like the trainer. Settings: see
# common.sh.
source "$(dirname "$0")/common.sh"
need RUNTIME_VERSION
[[ $# -eq 0 ]] || usage

case "$RUNTIME_VERSION" in
  tpu-vm-tf-*) packages="-e . 'cloud-tpu-client>=0.10' 'protobuf>=5.28'" ;;
  *) packages="-e '.[$EXTRA]'" ;;
esac
modules=tensorflow
oldest=10
if [[ "$EXTRA" == xla-tpu ]]; then
  modules="tensorflow, jax"
  oldest=11 # Of jax.
fi
archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
git -C "$root" ls-files -z --cached --others --exclude-standard |
  tar -C "$root" --null -czf "$archive" -T -
tpu scp "$archive" "$NAME:$remote_root.tar.gz" --worker=all
# The versions must be the same on all hosts; the last line of each prints them.
on_hosts all "set -e
mkdir -p $remote_root
tar -xzf $remote_root.tar.gz -C $remote_root
cd $remote_root
$PYTHON -c 'import sys; sys.exit(not (3, $oldest) <= sys.version_info < (3, 13))' || {
  echo \"error: EXTRA=$EXTRA needs Python 3.$oldest to 3.12 on \$(hostname), where $PYTHON is\" \
    \"\$($PYTHON -V 2>&1). Install one on all hosts and export PYTHON=….\" >&2
  exit 1
}
$PYTHON -m pip install --quiet --disable-pip-version-check $packages
TF_CPP_MIN_LOG_LEVEL=2 $PYTHON -c 'import retinanet_tpu.startup.tpu
import $modules
print(*(f\"{m.__name__} {m.__version__}\" for m in [$modules]))' || {
  echo \"error: $modules cannot be imported on \$(hostname). If a trainer runs there,\" \
    \"stop it first: tools/deploy/tpu_vm/stop.sh. Else see docs/guides/tpu.md for compatible versions.\" >&2
  exit 1
}"
echo "All hosts of $NAME are set up. Next: tools/deploy/tpu_vm/start.sh FLAGS OF THE TRAINER"
