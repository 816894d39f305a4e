#!/usr/bin/env bash
# Runs the program on one host of a pod. launch/tpu_pod.sh calls this script on each host, over ssh,
# in the copy of the repository on the host (~/flamingo_jax).
#
#   install [BUCKET:DIRECTORY ...]               makes the environment (.venv, with libtpu), and
#                                                mounts buckets read-only
#   start [NAME=VALUE ...] -- MODULE [FLAG ...]  starts `python -m MODULE`; it outlives this shell
#   stop                                         ends it
#   status                                       prints running | ended STATUS | killed | none
#   log LINES [follow]                           prints the end of the log
#
# ~/flamingo_pod contains log, pid, status and files (the list of the copied files).
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
KEPT="$HOME/flamingo_pod"
WORKER="${HOSTNAME##*-}" # t1v-n-0123abcd-w-5 is worker 5
BOOT="$(cat /proc/sys/kernel/random/boot_id)"
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

# Returns 0 if a process of the job is alive; sets $session. Process numbers are valid until
# the next boot, so the file pid contains the id of the boot too.
alive() {
  local boot
  read -r session boot <"$KEPT/pid" 2>/dev/null || return 1
  [ "$boot" = "$BOOT" ] && kill -0 -- "-$session" 2>/dev/null
}

# Prints the state of the job.
status() {
  if [ -e "$KEPT/status" ]; then
    printf 'ended %s\n' "$(cat "$KEPT/status")"
  elif [ ! -e "$KEPT/pid" ]; then
    printf 'none\n'
  elif alive; then
    printf 'running\n'
  else
    printf 'killed\n'
  fi
}

# Kills all processes of the job. JAX takes SIGTERM as the notice of a preemption and continues.
stop() {
  [ ! -e "$KEPT/status" ] || return 0
  while alive; do
    kill -KILL -- "-$session" 2>/dev/null || true
    sleep 0.1
  done
}

start() {
  local variables=()
  while [ "$1" != -- ]; do
    variables+=("$1")
    shift
  done
  shift
  stop
  rm -f "$KEPT/status" "$KEPT/pid"
  printf '== %s: python -m %s\n' "$(date -u '+%Y-%m-%d %H:%M:%S UTC')" "$*" >>"$KEPT/log"
  # The job has its own session and no terminal, so it survives the end of this ssh connection.
  # shellcheck disable=SC2016 # the inner shell expands it
  local job='kept="$1"; echo "$$ $2" >"$kept/pid"; shift 2
    code=0; "$@" || code=$?; echo "$code" >"$kept/status"'
  setsid nohup bash -c "$job" job "$KEPT" "$BOOT" \
    env ${variables[@]+"${variables[@]}"} PYTHONUNBUFFERED=1 "$PYTHON" -m "$@" \
    </dev/null >>"$KEPT/log" 2>&1 &
  while [ ! -s "$KEPT/pid" ]; do sleep 0.05; done
}

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
    start "$@"
    ;;
  stop) stop ;;
  status) printf 'worker %s: %s\n' "$WORKER" "$(status)" ;;
  log)
    [ -e "$KEPT/log" ] || fail "there is no log: nothing was started here"
    follow=()
    [ "${2:-}" != follow ] || follow=(-F)
    tail -n "$1" ${follow[@]+"${follow[@]}"} "$KEPT/log" | sed -u "s/^/[$WORKER] /"
    ;;
  *)
    fail "launch/tpu_worker.sh has no action '$action';" \
      "expected install, start, stop, status or log"
    ;;
esac
