# shellcheck shell=bash
# The scripts in launch/ source this file. It sets $ROOT (the clone) and $PYTHON (that of .venv).
# It makes .venv from launch/requirements.lock if it is missing or outdated.
#
# The environment is outdated if a lock file, setup.py, the path of the clone or the version of
# Python has changed. The file `stamp` is written last: an environment without it is incomplete, and
# is made again. What pip said is in .venv/install.log.
# FLAMINGO_PYTHON=/path/to/python chooses the interpreter: 3.11 (tested) or later.
# FLAMINGO_EXTRA=cuda adds launch/requirements_cuda.lock: CUDA for an NVIDIA GPU. Later calls without
# this variable keep it; FLAMINGO_EXTRA= goes back to the CPU.
# FLAMINGO_VENV=/path/to/environment uses that environment and installs nothing: for a GPU, a TPU,
# or your own set of packages.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${FLAMINGO_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"
EXTRA="${FLAMINGO_EXTRA-$(cat "$VENV/extra" 2>/dev/null || true)}"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Ends the script if it was a signal that ended a program. $1: its status; $2: what it was.
stop_if_asked() {
  case "$1" in
    75 | 76 | 130 | 143) # flamingo_jax/core/exit_status.py
      say "$2 was stopped. The same command goes on"
      exit "$1"
      ;;
  esac
}

# Ends the script: a program did not succeed. $1: its status; $2: what it was; $3: where it writes.
stopped() {
  stop_if_asked "$1" "$2"
  die "$2 did not succeed (the reason is above)${3:+; what it did is in $3}"
}

# Prints the first interpreter that is at least 3.11.
find_python() {
  local candidate candidates=(python3.11 python3.12 python3.13 python3 python)
  for candidate in ${FLAMINGO_PYTHON:+"$FLAMINGO_PYTHON"} "${candidates[@]}"; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  die "no Python 3.11 or later was found (looked for python3.11, 3.12, 3.13, python3, python)." \
    "Install one, or name it: FLAMINGO_PYTHON=/path/to/python $0"
}

# Prints a hash of everything that the environment depends on. $1: the interpreter.
environment_stamp() {
  "$1" - "$ROOT" "$EXTRA" <<'PY'
import hashlib, sys
root, extra = sys.argv[1:]
stamp = hashlib.sha256(f"{root}\n{sys.version}\n".encode())
more = [f"launch/requirements_{extra}.lock"] if extra else []
for name in ("launch/requirements.lock", "setup.py", *more):
    with open(f"{root}/{name}", "rb") as file:
        stamp.update(file.read())
print(stamp.hexdigest())
PY
}

# Installs a Debian package if this user may (root, apt); returns non-zero if not. $1: the package.
apt_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
  if [ -z "${APT_UPDATED:-}" ]; then
    APT_UPDATED=1
    apt-get update -qq >/dev/null 2>&1 \
      || say "note: apt-get update failed; going on with the package lists that are there"
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" \
    </dev/null >/dev/null 2>&1
}

# Runs a step of the installation; ends the script with one line if it fails. $1: what for.
install_step() {
  local reason task="$1" log="$VENV/install.log"
  local network='ConnectionError|NameResolution|ConnectTimeout|ReadTimeout|ProxyError|reset by peer'
  shift
  ! "$@" >>"$log" 2>&1 || return 0
  if grep -q 'No space left on device' "$log"; then
    reason="the disk is full (df -h $ROOT)"
  elif grep -Eq "$network" "$log"; then
    reason="the package index is not reachable (is there a network, a proxy?)"
  else
    reason="$(grep -i 'error' "$log" | tail -n 1)" || reason="$(tail -n 1 "$log")"
  fi
  die "$task failed: $reason. All that was said is in $log. Run $0 again when it is mended"
}

# Makes .venv from the lock. $1: the interpreter; $2: the stamp.
make_environment() {
  local started=$SECONDS
  say "making the environment in $VENV (once; a few minutes on a slow network)"
  rm -rf "$VENV"
  { mkdir -p "$VENV" && : >"$VENV/install.log"; } 2>/dev/null \
    || die "cannot write in $VENV. Is the disk full? (df -h $ROOT)"
  if ! "$1" -m venv "$VENV" >>"$VENV/install.log" 2>&1; then
    # Debian's Python has no ensurepip.
    if ! "$1" -c 'import ensurepip' >/dev/null 2>&1; then
      apt_install python3-venv || die "$1 cannot make a virtual environment in $VENV." \
        "On Debian or Ubuntu: apt-get install python3-venv"
    fi
    : >"$VENV/install.log"
    install_step "making $VENV" "$1" -m venv "$VENV"
  fi
  local install=("$PYTHON" -m pip install --quiet --disable-pip-version-check)
  install_step "installing launch/requirements.lock" \
    "${install[@]}" --requirement "$ROOT/launch/requirements.lock"
  if [ -n "$EXTRA" ]; then
    install_step "installing launch/requirements_$EXTRA.lock" \
      "${install[@]}" --requirement "$ROOT/launch/requirements_$EXTRA.lock"
    printf '%s\n' "$EXTRA" >"$VENV/extra" || die "cannot write $VENV/extra. Is the disk full?"
  fi
  install_step "pip install --editable $ROOT" \
    "${install[@]}" --no-deps --no-build-isolation --editable "$ROOT"
  printf '%s\n' "$2" >"$VENV/stamp" || die "cannot write $VENV/stamp. Is the disk full?"
  say "environment ready after $((SECONDS - started)) s"
}

# Takes the lock of the environment: two scripts must not write one directory at the same time.
# mkdir is atomic, on every system. The lock of a script that was killed is taken over.
lock_environment() {
  local owner waited=0 me
  me="$$ $(uname -n)" # a process number says nothing on another machine with the same disk
  until mkdir "$VENV.lock" 2>/dev/null; do
    if ! [ -d "$VENV.lock" ]; then # it was given back just now, or it cannot be made
      ! mkdir "$VENV.lock" 2>/dev/null || break
      [ -d "$VENV.lock" ] || die "cannot make $VENV.lock. Is $ROOT read-only, or its disk full?"
    fi
    owner="$(cat "$VENV.lock/pid" 2>/dev/null || true)"
    if is_dead "$owner" && mkdir "$VENV.lock/after ${owner:-nobody}" 2>/dev/null; then
      break # of all that wait, one makes this directory
    fi
    [ "$waited" -gt 0 ] || say "waiting for another script of launch/ to finish $VENV"
    waited=$((waited + 2))
    [ "$waited" -le 1800 ] || die "$VENV.lock is still there after 30 minutes." \
      "If no other script of launch/ runs: rm -r $VENV.lock"
    sleep 2
  done
  trap 'rm -rf "$VENV.lock"' EXIT
  printf '%s\n' "$me" >"$VENV.lock/pid" || die "cannot write $VENV.lock. Is the disk full?"
}

# Returns 0 if the owner $1 of the lock ("PROCESS MACHINE", or nothing) cannot finish.
is_dead() {
  local pid="${1%% *}"
  # A script that was killed between its mkdir and its first word left nothing.
  [ -n "$1" ] || { [ -n "$(find "$VENV.lock" -maxdepth 0 -mmin +1 2>/dev/null)" ]; return; }
  [ "$1" = "$pid" ] || [ "${1#* }" = "$(uname -n)" ] || return 1
  ! kill -0 "$pid" 2>/dev/null
}

ensure_environment() {
  local base stamp
  base="$(find_python)" || exit 1
  stamp="$(environment_stamp "$base")"
  [ -x "$PYTHON" ] && [ "$(cat "$VENV/stamp" 2>/dev/null)" = "$stamp" ] && return
  lock_environment
  if ! [ -x "$PYTHON" ] || [ "$(cat "$VENV/stamp" 2>/dev/null)" != "$stamp" ]; then
    make_environment "$base" "$stamp"
  fi
  rm -rf "$VENV.lock"
  trap - EXIT
}

[[ $EXTRA =~ ^(cuda)?$ ]] || die "FLAMINGO_EXTRA=$EXTRA: expected cuda, or nothing for a CPU"
if [ -z "${FLAMINGO_VENV:-}" ]; then
  ensure_environment
elif [ ! -x "$PYTHON" ]; then
  die "FLAMINGO_VENV=$FLAMINGO_VENV holds no bin/python. Name a virtual environment, or unset it"
fi
cd "$ROOT" || die "cannot enter $ROOT"
# All processes share the compiled programs in this directory, so a rerun does not compile again.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"
