#!/usr/bin/env bash
# Shows the log of host 0's trainer until the trainer ends or you press Ctrl-C.
#   tools/deploy/tpu_vm/tail.sh
# Settings: see common.sh.
source "$(dirname "$0")/common.sh"
[[ $# -eq 0 ]] || usage
on_hosts 0 "$remote_root/tools/deploy/tpu_vm/on_host.sh tail"
