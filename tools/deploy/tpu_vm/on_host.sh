#!/usr/bin/env bash
# Runs one trainer on this host and restarts it whenever it is preempted.
#   on_host.sh start FLAGS   starts it in the background, with FLAGS of
#                            `python -m retinanet_tpu.train`
#   on_host.sh tail          shows its log until it ends; returns its exit code
#   on_host.sh stop          lets it save and waits until it ends
# start.sh, tail.sh and stop.sh call this script.
set -euo pipefail

state=$HOME/retinanet_tpu_run
# The trainer's exit code if it was preempted and has saved, or lost the one of another
# host. The trainers of a slice wait for each other when they start.
preempted=42
restart_secs=${RESTART_SECS:-10}
mkdir -p "$state"
cd "$(dirname "${BASH_SOURCE[0]}")/../../.."

fail() {
  echo "error: $*" >&2
  exit 1
}

# Both the loop and the trainer hold the lock.
is_running() {
  ! flock --nonblock "$state/lock" true
}

start() {
  local flags
  flags=$(printf ' %q' "$@")
  exec 9>>"$state/lock"
  if ! flock --nonblock 9; then
    [[ "$(cat "$state/flags")" == "$flags" ]] ||
      fail "Another trainer runs here:$(cat "$state/flags"). Stop it first: stop.sh"
    echo "This trainer runs already; tail.sh shows its log."
    return
  fi
  echo "$flags" >"$state/flags"
  rm -f "$state/exit_code"
  setsid tools/deploy/tpu_vm/on_host.sh loop "$@" >>"$state/log" 2>&1 </dev/null &
  echo $! >"$state/pid"
  echo "The trainer starts; its log is $state/log on this host; tail.sh shows it."
}

loop() {
  local code stopping=no
  # Bash runs the trap after the trainer has ended; stop() sends the signal to both.
  trap 'stopping=yes' TERM
  while true; do
    code=0
    "${PYTHON:-python3}" -m retinanet_tpu.train "$@" || code=$?
    [[ $code -eq $preempted && $stopping == no ]] || break
    echo "on_host.sh | preempted | restarting in $restart_secs s"
    sleep "$restart_secs" || true
    [[ $stopping == no ]] || break
  done
  echo "on_host.sh | the trainer ended with $code"
  echo "$code" >"$state/exit_code"
}

show() {
  [[ -e "$state/pid" ]] || fail "No trainer was started here; run start.sh"
  tail --lines=100 --follow=name --sleep-interval=0.2 --pid="$(cat "$state/pid")" \
    "$state/log"
  [[ -e "$state/exit_code" ]] ||
    fail "The trainer disappeared without an exit code; run start.sh with the same flags again."
  exit "$(cat "$state/exit_code")"
}

stop() {
  local pid waited
  is_running || { echo "No trainer runs here." && return; }
  pid=$(cat "$state/pid")
  echo "The trainer saves at the end of its current loop of steps."
  for ((waited = 0; waited < 600; waited += 10)); do
    kill -TERM -- "-$pid" 2>/dev/null || true
    if flock --wait 10 "$state/lock" true; then
      echo "It ended with $(cat "$state/exit_code" 2>/dev/null || echo no exit code)."
      return
    fi
  done
  fail "It still runs after 600 s; tail.sh shows its log."
}

case "${1:-}" in
  start | loop | stop) "$@" ;;
  tail) show ;;
  *) fail "The first argument must be start, tail or stop." ;;
esac
