#!/usr/bin/env bash
# Runs the program on one host of a pod. launch/tpu_pod.sh calls this script on each host, over ssh,
# in the copy of the repository on the host (~/flamingo_jax).
#
#   install [BUCKET:DIRECTORY ...]   makes the environment (.venv, with libtpu), and mounts buckets
#                                    read-only
#   start ID [NAME=VALUE ...] -- MODULE [FLAG ...]
#                                    starts `python -m MODULE`, which outlives this shell; ID names
#                                    the job
#   stop [SECONDS]                   ends it: SIGTERM, on which the program saves; what still runs
#                                    after SECONDS (300) is killed
#   status                           prints STATE|ID|END|STEP|LINE: running, ended STATUS, killed,
#                                    rebooted or none; the job; the second at which it ended; the
#                                    newest step and the last line of its log
#   log LINES [follow]               prints the end of the log, as lines of text
#
# ~/flamingo_pod contains log (log.1 is older), id, pid, program, status and files (the list of the
# copied files).
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
KEPT="$HOME/flamingo_pod"
WORKER="${HOSTNAME##*-}" # t1v-n-0123abcd-w-5 is worker 5
BOOT="$(cat /proc/sys/kernel/random/boot_id)"
SAVE_SECONDS=300                               # from SIGTERM to SIGKILL
LOG_BYTES="${FLAMINGO_LOG_BYTES:-100000000}"   # a larger log is put aside at the next start
LOGS_KEPT=5                                    # so many logs are put aside; older ones are removed
FULL="Is the disk full? (df -h $HOME)"
LONGEST=4000                                   # bytes of a line that are shown
mkdir -p "$KEPT"

fail() { printf 'error: worker %s: %s\n' "$WORKER" "$*" >&2; exit 1; }

# Returns 0 if $1 is a Python that can make the environment.
suits() {
  "$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Sets FLAMINGO_PYTHON to a suitable Python. Installs one if needed, because some images of TPU
# hosts have only 3.10.
choose_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3; do
    if suits "$candidate"; then
      export FLAMINGO_PYTHON="$candidate"
      return
    fi
  done
  sudo -n apt-get update -qq >/dev/null 2>&1 || true # the next line fails if it must
  sudo -n env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq python3.11 python3.11-venv >/dev/null \
    || fail "no Python 3.11 or later, and apt-get cannot install it. Install it on all workers"
  export FLAMINGO_PYTHON=python3.11
}

# As in https://cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc source=https://packages.cloud.google.com/apt
  {
    curl -fsS "$source/doc/apt-key.gpg" | sudo -n tee "$key" >/dev/null \
      && printf 'deb [signed-by=%s] %s gcsfuse-%s main\n' "$key" "$source" "$(lsb_release -c -s)" \
      | sudo -n tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null \
      && sudo -n apt-get update -qq >/dev/null \
      && sudo -n env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq gcsfuse >/dev/null
  } || fail "cannot install gcsfuse. Install it on all workers"
}

# Mounts a bucket. $1: BUCKET:DIRECTORY, where the directory is absolute or below the home.
mount_bucket() {
  local bucket="${1%%:*}" directory="${1#*:}" mounted
  [ "${directory#/}" != "$directory" ] || directory="$HOME/$directory"
  mounted="$(findmnt --noheadings --output SOURCE --mountpoint "$directory" || true)"
  [ "$mounted" != "$bucket" ] || return 0
  [ -z "$mounted" ] || fail "$directory is the mount of $mounted, not of $bucket." \
    "Name another directory: --mount=$bucket:DIRECTORY"
  command -v gcsfuse >/dev/null 2>&1 || install_gcsfuse
  mkdir -p "$directory" 2>/dev/null \
    || { sudo -n mkdir -p "$directory" && sudo -n chown "$(id -u):$(id -g)" "$directory"; } \
    || fail "cannot make the directory $directory"
  gcsfuse --implicit-dirs -o ro "$bucket" "$directory" >>"$KEPT/gcsfuse.log" 2>&1 \
    || fail "cannot mount $bucket on $directory: $(tail -n 1 "$KEPT/gcsfuse.log")"
}

# Waits until no other call of this script starts or stops the job.
lock() {
  exec 9>"$KEPT/lock"
  flock -w 900 9 || fail "another call of launch/tpu_worker.sh has held $KEPT/lock for 900 s"
}

# Returns 0 if a process of the job is alive; sets $session. Process numbers are valid until
# the next boot, so the file pid contains the id of the boot too.
alive() {
  read -r session boot 2>/dev/null <"$KEPT/pid" || return 1
  [ "$boot" = "$BOOT" ] && kill -0 -- "-$session" 2>/dev/null
}

# Prints the state of the job.
state() {
  local session boot=""
  if [ -s "$KEPT/status" ]; then
    printf 'ended %s\n' "$(cat "$KEPT/status")"
  elif [ ! -s "$KEPT/pid" ]; then
    printf 'none\n'
  elif alive; then
    printf 'running\n'
  elif [ "$boot" != "$BOOT" ]; then
    printf 'rebooted\n'
  else
    printf 'killed\n'
  fi
}

# Prints what the watcher wants to know, in one line.
status() {
  local id ended end
  id="$(cat "$KEPT/id" 2>/dev/null || true)"
  ended="$(stat -c %Y "$KEPT/status" 2>/dev/null || true)"
  end="$(tail -c 200000 "$KEPT/log" 2>/dev/null | as_lines | awk -f "$HERE/log_end.awk")" || true
  printf 'worker %s: %s|%s|%s|%s\n' "$WORKER" "$(state)" "$id" "$ended" "${end:-|}"
}

# Ends the job. $1: seconds to save in.
stop() {
  local session boot until=$((SECONDS + ${1:-$SAVE_SECONDS}))
  alive || return 0
  # Only the program itself is asked: it ends its own processes when it has saved. It is asked once:
  # a second SIGTERM ends it at once, unsaved.
  if ! cmp -s "$KEPT/program" "$KEPT/asked"; then
    cp "$KEPT/program" "$KEPT/asked"
    kill -TERM "$(cat "$KEPT/program")" 2>/dev/null || true
  fi
  while alive && [ "$SECONDS" -lt "$until" ]; do sleep 0.1; done
  alive || return 0
  printf 'worker %s: the program did not end within %s s of SIGTERM, and was killed\n' \
    "$WORKER" "${1:-$SAVE_SECONDS}" >&2
  while alive; do
    kill -KILL -- "-$session" 2>/dev/null || true
    sleep 0.1
  done
}

# Puts a large log aside.
rotate() {
  local i
  [ "$(stat -c %s "$KEPT/log" 2>/dev/null || echo 0)" -gt "$LOG_BYTES" ] || return 0
  for ((i = LOGS_KEPT; i > 1; i--)); do
    [ ! -e "$KEPT/log.$((i - 1))" ] || mv "$KEPT/log.$((i - 1))" "$KEPT/log.$i"
  done
  mv "$KEPT/log" "$KEPT/log.1"
}

start() {
  local id="$1" variables=() next i
  shift
  # Two scripts may start a job at the same time: one of them wrote its id last.
  next="$(cat "$KEPT/id" 2>/dev/null || true)"
  [ -z "$next" ] || [ "$next" = "$id" ] || fail "this slice was given to another job, $next"
  printf '%s\n' "$id" >"$KEPT/id" || fail "cannot write $KEPT/id. $FULL"
  while [ "$1" != -- ]; do
    variables+=("$1")
    shift
  done
  shift
  stop
  rotate
  rm -f "$KEPT/status" "$KEPT/pid" "$KEPT/program" "$KEPT/asked"
  # An empty line ends what a killed program left half written.
  printf '\n== %s: python -m %s\n' "$(date -u '+%Y-%m-%d %H:%M:%S UTC')" "$*" >>"$KEPT/log" \
    || fail "cannot write $KEPT/log. $FULL"
  # The job has its own session and no terminal, so it survives the end of this ssh connection. Its
  # shell survives the signals of the program, writes down how it ended, and leaves no process.
  # shellcheck disable=SC2016 # the inner shell expands it
  local job='trap : TERM INT HUP
    kept="$1"; echo "$$ $2" >"$kept/pid"; shift 2; code=0
    (echo "$BASHPID" >"$kept/program"; exec "$@") || code=$?
    for left in $(ps -o pid= --sid "$$"); do
      [ "$left" = "$$" ] || kill -KILL "$left" 2>/dev/null
    done
    echo "$code" >"$kept/status.new"; mv "$kept/status.new" "$kept/status"'
  setsid nohup bash -c "$job" job "$KEPT" "$BOOT" \
    env ${variables[@]+"${variables[@]}"} PYTHONUNBUFFERED=1 "$PYTHON" -m "$@" \
    </dev/null >>"$KEPT/log" 2>&1 9>&- &
  for ((i = 0; i < 600; i++)); do
    [ ! -s "$KEPT/program" ] || return 0
    sleep 0.05
  done
  fail "the program has not started after 30 s. $FULL"
}

# Makes lines of what a program wrote for a terminal: carriage returns end a line; colours, other
# control characters and empty lines are left out; long lines are cut.
as_lines() {
  LC_ALL=C stdbuf -oL tr '\r' '\n' \
    | LC_ALL=C stdbuf -oL tr -d '\000-\010\013-\032\034-\037\177' \
    | LC_ALL=C stdbuf -oL cut -b "1-$LONGEST" \
    | LC_ALL=C sed -u -e 's/\x1b\[[0-9;?]*[A-Za-z]//g; s/\x1b//g' -e '/^[[:space:]]*$/d'
}

# Prints the last $1 lines of the log; $2: follow.
log() {
  local log="$KEPT/log" recent=$((4000000 + 300 * $1)) size half=0 ends from mine="s/^/[$WORKER] /"
  if [ ! -e "$log" ]; then
    [ "${2:-}" = follow ] || fail "there is no log: nothing was started here"
    printf 'worker %s: there is no log yet\n' "$WORKER" >&2
    until [ -e "$log" ]; do sleep 1; done
  fi
  size="$(stat -c %s "$log")"
  from=$((size > recent ? size - recent : 0))
  if [ "${2:-}" = follow ]; then
    # A line that is half written is shown when it is complete.
    read -r ends half < <(part "$from" $((size - from)) | tr '\r' '\n' | tail -n 1 | wc -lc)
    [ "$ends" = 0 ] || half=0
  fi
  # The end of the line, in case that the last one has none.
  { part "$from" $((size - half - from)); printf '\n'; } | as_lines | tail -n "$1" | sed -u "$mine"
  [ "${2:-}" = follow ] || return 0
  # By name: goes on with the next log when this one is put aside.
  tail -c "+$((size - half + 1))" -F "$log" 2>/dev/null | as_lines | sed -u "$mine"
}

# Prints $2 bytes of the log from byte $1 on.
part() { tail -c "+$(($1 + 1))" "$KEPT/log" | head -c "$2" || true; }

action="${1:-}"
[ $# -eq 0 ] || shift
case "$action" in
  install)
    choose_python
    # shellcheck source=launch/environment.sh
    source "$HERE/environment.sh"
    if ! cmp -s "$VENV/stamp" "$VENV/tpu"; then
      "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
        --constraint launch/requirements.lock --editable '.[tpu]' \
        || fail "pip install '.[tpu]' failed (the reason is above)"
      cp "$VENV/stamp" "$VENV/tpu"
    fi
    for mount in "$@"; do mount_bucket "$mount"; done
    ;;
  start)
    choose_python
    # shellcheck source=launch/environment.sh
    source "$HERE/environment.sh"
    lock
    start "$@"
    ;;
  stop) lock; stop "$@" ;;
  status) status ;;
  log) log "$@" ;;
  *)
    fail "launch/tpu_worker.sh has no action '$action';" \
      "expected install, start, stop, status or log"
    ;;
esac
