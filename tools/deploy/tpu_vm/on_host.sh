#!/usr/bin/env bash
# Runs on the host that trains: one trainer, started again as often as it is preempted.
#   on_host.sh start FLAGS   in the background; FLAGS of `python -m retinanet_tpu.train`
#   on_host.sh tail          shows its log until it ends; exits as it did
#   on_host.sh stop          lets it save, and waits for its end
# start.sh, tail.sh and stop.sh call this.
set -euo pipefail

state=$HOME/retinanet_tpu_run
preempted=42 # The trainer's exit code for: all is saved, start the same command again.
restart_secs=${RESTART_SECS:-10}
mkdir -p "$state"
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

fail() {
  echo "error: $*" >&2
  exit 1
}

# The lock is held by the loop and by the trainer, whichever lives longer.
is_running() {
  ! flock --nonblock "$state/lock" true
}

start() {
  local wanted
  wanted=$(printf ' %q' "$@")
  exec 9>>"$state/lock"
  if ! flock --nonblock 9; then
    [[ "$(cat "$state/flags")" == "$wanted" ]] ||
      fail "Another trainer runs here:$(cat "$state/flags"). Stop it first: stop.sh"
    echo "This trainer runs already; see tail.sh."
    return
  fi
  echo "$wanted" >"$state/flags"
  rm -f "$state/exit_code"
  setsid tools/deploy/tpu_vm/on_host.sh loop "$@" >>"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
  echo "The trainer starts; its log is $state/log here, or tail.sh."
}

loop() {
  local code stopping=no
  # Runs once the trainer has ended: stop() sends the signal to both.
  trap 'stopping=yes' TERM
  while true; do
    code=0
    python3 -m retinanet_tpu.train "$@" || code=$?
    [[ $code -eq $preempted && $stopping == no ]] || break
    echo "on_host.sh | preempted | starting again in $restart_secs s"
    sleep "$restart_secs" || true
    [[ $stopping == no ]] || break
  done
  echo "on_host.sh | the trainer ended with $code"
  echo "$code" >"$state/exit_code"
}

show() {
  [[ -e "$state/pid" ]] || fail "No trainer was started here; start.sh"
  tail --lines=100 --follow=name --sleep-interval=0.2 --pid="$(cat "$state/pid")" \
    "$state/log"
  [[ -e "$state/exit_code" ]] ||
    fail "The trainer is gone without a word; start the same command again."
  exit "$(cat "$state/exit_code")"
}

stop() {
  local pid waited
  is_running || { echo "No trainer runs here." && return; }
  pid=$(cat "$state/pid")
  echo "The trainer saves at the end of its loop of steps."
  for ((waited = 0; waited < 600; waited += 10)); do
    kill -TERM -- "-$pid" 2>/dev/null || true
    if flock --wait 10 "$state/lock" true; then
      echo "It ended with $(cat "$state/exit_code" 2>/dev/null || echo no exit code)."
      return
    fi
  done
  fail "It still runs after 600 s; look at tail.sh."
}

case "${1:-}" in
  start | loop | stop) "$@" ;;
  tail) show ;;
  *) fail "Say start, tail or stop." ;;
esac
