# shellcheck shell=bash
# Sourced by the scripts in launch/: gives $ROOT (the clone) and $PYTHON (its .venv, made from launch/requirements.lock when missing or outdated).
#
# The environment is rebuilt when the lock file, setup.py, the place of the clone or the Python behind it changed. The stamp is written last, so an
# environment whose making was interrupted has none and is made again.
# FLAMINGO_PYTHON=/path/to/python chooses the interpreter (3.11 or later; the lock is tested on 3.11).
# FLAMINGO_VENV=/path/to/environment uses that environment as it is, and installs nothing: for a GPU, a TPU, or a set of packages of your own.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${FLAMINGO_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Prints the first interpreter that is at least 3.11.
find_python() {
  local candidate
  for candidate in ${FLAMINGO_PYTHON:+"$FLAMINGO_PYTHON"} python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      "$candidate" -c 'import sys; print(sys.executable)'
      return
    fi
  done
  die "no Python 3.11 or later was found (looked for python3.11, 3.12, 3.13, python3, python). Install one, or name it: FLAMINGO_PYTHON=/path/to/python $0"
}

# Prints what the environment is made from, as one hash. $1: the interpreter.
environment_stamp() {
  "$1" - "$ROOT" <<'PY'
import hashlib, sys
root = sys.argv[1]
stamp = hashlib.sha256(f"{root}\n{sys.version}\n".encode())
for name in ("launch/requirements.lock", "setup.py"):
    with open(f"{root}/{name}", "rb") as file:
        stamp.update(file.read())
print(stamp.hexdigest())
PY
}

# Installs a Debian package where we may (root, apt); a failure is the caller's to report. $1: the package.
apt_install() {
  [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1 || return 1
  if [ -z "${APT_UPDATED:-}" ]; then
    APT_UPDATED=1
    apt-get update -qq >/dev/null 2>&1 || say "note: apt-get update failed; going on with the package lists that are there"
  fi
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1" </dev/null >/dev/null 2>&1
}

# Makes .venv from the lock. $1: the interpreter; $2: the stamp.
make_environment() {
  local started=$SECONDS
  say "making the environment in $VENV (once; a few minutes on a slow network)"
  rm -rf "$VENV"
  if ! "$1" -m venv "$VENV" >/dev/null 2>&1; then
    # Debian's Python comes without ensurepip.
    apt_install python3-venv || true
    rm -rf "$VENV"
    "$1" -m venv "$VENV" || die "$1 could not make a virtual environment in $VENV. On Debian or Ubuntu: apt-get install python3-venv"
  fi
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --requirement "$ROOT/launch/requirements.lock" \
    || die "installing launch/requirements.lock into $VENV failed (the reason is above). Run $0 again when it is mended"
  "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable "$ROOT" \
    || die "pip install --editable $ROOT failed (the reason is above)"
  printf '%s\n' "$2" >"$VENV/stamp"
  say "environment ready after $((SECONDS - started)) s"
}

ensure_environment() {
  local base stamp owner waited=0
  base="$(find_python)" || exit 1
  stamp="$(environment_stamp "$base")"
  [ "$(cat "$VENV/stamp" 2>/dev/null)" = "$stamp" ] && return
  # Two scripts started at once must not build into one directory. mkdir is atomic, and there on every system.
  until mkdir "$VENV.lock" 2>/dev/null; do
    owner="$(cat "$VENV.lock/pid" 2>/dev/null || true)"
    if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
      rm -rf "$VENV.lock" # its owner was killed
      continue
    fi
    [ "$waited" -gt 0 ] || say "waiting for another script of launch/ to finish $VENV"
    waited=$((waited + 2))
    [ "$waited" -le 1800 ] || die "$VENV.lock is still there after 30 minutes. If no other script of launch/ runs: rm -r $VENV.lock"
    sleep 2
  done
  printf '%s\n' "$$" >"$VENV.lock/pid"
  trap 'rm -rf "$VENV.lock"' EXIT
  [ "$(cat "$VENV/stamp" 2>/dev/null)" = "$stamp" ] || make_environment "$base" "$stamp"
  rm -rf "$VENV.lock"
  trap - EXIT
}

if [ -z "${FLAMINGO_VENV:-}" ]; then
  ensure_environment
elif [ ! -x "$PYTHON" ]; then
  die "FLAMINGO_VENV=$FLAMINGO_VENV holds no bin/python. Name a virtual environment, or unset it"
fi
cd "$ROOT" || die "cannot enter $ROOT"
# Compiled programs are kept here and shared by all processes, so that a rerun starts at once.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"
