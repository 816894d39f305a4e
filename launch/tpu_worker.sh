#!/usr/bin/env bash
# One host of a pod: launch/tpu_pod.sh runs this on each of them, over ssh. It lies in the code that was shipped there (~/flamingo_jax).
#
#   install [BUCKET:DIRECTORY ...]               the environment (.venv, with libtpu), and read-only mounts of buckets
#   start [NAME=VALUE ...] -- MODULE [FLAG ...]  starts `python -m MODULE`, which outlives this shell; stop ends it
#   status                                       running | ended STATUS | killed | none
#   log LINES [follow]                           the end of the log
#
# What it keeps is in ~/flamingo_pod: log, pid, status, files (the list of what was shipped).
set -euo pipefail

HERE="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
KEPT="$HOME/flamingo_pod"
WORKER="${HOSTNAME##*-}" # t1v-n-0123abcd-w-5 is worker 5
BOOT="$(cat /proc/sys/kernel/random/boot_id)"
mkdir -p "$KEPT"

fail() { printf 'error: worker %s: %s\n' "$WORKER" "$*" >&2; exit 1; }

# Whether $1 is a Python that can make the environment.
suits() {
  "$1" -c 'import sys, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

# Names a suitable Python; the images of TPU hosts may have 3.10 alone.
choose_python() {
  local candidate
  for candidate in python3.11 python3.12 python3.13 python3; do
    if suits "$candidate"; then
      export FLAMINGO_PYTHON="$candidate"
      return
    fi
  done
  sudo -n apt-get update -qq >/dev/null 2>&1 || true # what counts is whether the package comes
  sudo -n env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq python3.11 python3.11-venv >/dev/null \
    || fail "no Python 3.11 or later, and apt-get cannot install it. Install it on all workers"
  export FLAMINGO_PYTHON=python3.11
}

# As in https://cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
  local key=/usr/share/keyrings/cloud.google.asc
  {
    curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo -n tee "$key" >/dev/null \
      && printf 'deb [signed-by=%s] https://packages.cloud.google.com/apt gcsfuse-%s main\n' "$key" "$(lsb_release -c -s)" \
      | sudo -n tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null \
      && sudo -n apt-get update -qq >/dev/null \
      && sudo -n env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq gcsfuse >/dev/null
  } || fail "cannot install gcsfuse. Install it on all workers"
}

# Mounts a bucket. $1: BUCKET:DIRECTORY, the directory absolute or below the home.
mount_bucket() {
  local bucket="${1%%:*}" directory="${1#*:}" mounted
  [ "${directory#/}" != "$directory" ] || directory="$HOME/$directory"
  mounted="$(findmnt --noheadings --output SOURCE --mountpoint "$directory" || true)"
  [ "$mounted" != "$bucket" ] || return 0
  [ -z "$mounted" ] || fail "$directory is the mount of $mounted, not of $bucket. Name another directory: --mount=$bucket:DIRECTORY"
  command -v gcsfuse >/dev/null 2>&1 || install_gcsfuse
  mkdir -p "$directory" 2>/dev/null || { sudo -n mkdir -p "$directory" && sudo -n chown "$(id -u):$(id -g)" "$directory"; } \
    || fail "cannot make the directory $directory"
  gcsfuse --implicit-dirs -o ro "$bucket" "$directory" >>"$KEPT/gcsfuse.log" 2>&1 \
    || fail "cannot mount $bucket on $directory: $(tail -n 1 "$KEPT/gcsfuse.log")"
}

# Whether the job, or a part of it, is alive; sets $session. Process numbers mean something until the next boot only.
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

# Ends the job with all its processes. At once: JAX takes SIGTERM for the notice of a preemption, and would go on.
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
  # A session of its own, and no terminal: neither the end of this ssh nor a lost connection reaches it.
  # shellcheck disable=SC2016 # expanded by the inner shell
  setsid nohup bash -c 'kept="$1"; echo "$$ $2" >"$kept/pid"; shift 2; code=0; "$@" || code=$?; echo "$code" >"$kept/status"' \
    job "$KEPT" "$BOOT" env ${variables[@]+"${variables[@]}"} PYTHONUNBUFFERED=1 "$PYTHON" -m "$@" \
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
        --constraint launch/requirements.lock --editable '.[tpu]' || fail "pip install '.[tpu]' failed (the reason is above)"
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
  *) fail "launch/tpu_worker.sh has no action '$action'; expected install, start, stop, status or log" ;;
esac
