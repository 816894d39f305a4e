# shellcheck shell=bash
# The scripts in launch/ source this file. It sets $ROOT (the clone) and $PYTHON (that of .venv).
# It makes .venv from launch/requirements.lock if it is missing or outdated.
#
# The environment is outdated if the lock file, setup.py, the path of the clone or the version of
# Python has changed. The file `stamp` is written last: an environment without it is incomplete, and
# is made again.
# FLAMINGO_PYTHON=/path/to/python chooses the interpreter: 3.11 (tested) or later.
# FLAMINGO_VENV=/path/to/environment uses that environment and installs nothing: for a GPU, a TPU,
# or your own set of packages.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${FLAMINGO_VENV:-$ROOT/.venv}"
PYTHON="$VENV/bin/python"

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }

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

# Makes .venv from the lock. $1: the interpreter; $2: the stamp.
make_environment() {
  local started=$SECONDS
  say "making the environment in $VENV (once; a few minutes on a slow network)"
  rm -rf "$VENV"
  if ! "$1" -m venv "$VENV" >/dev/null 2>&1; then
    # Debian's Python has no ensurepip.
    apt_install python3-venv || true
    rm -rf "$VENV"
    "$1" -m venv "$VENV" || die "$1 could not make a virtual environment in $VENV." \
      "On Debian or Ubuntu: apt-get install python3-venv"
  fi
  local install=("$PYTHON" -m pip install --quiet --disable-pip-version-check)
  "${install[@]}" --requirement "$ROOT/launch/requirements.lock" \
    || die "installing launch/requirements.lock into $VENV failed (the reason is above)." \
      "Run $0 again when it is mended"
  "${install[@]}" --no-deps --no-build-isolation --editable "$ROOT" \
    || die "pip install --editable $ROOT failed (the reason is above)"
  printf '%s\n' "$2" >"$VENV/stamp"
  say "environment ready after $((SECONDS - started)) s"
}

ensure_environment() {
  local base stamp owner waited=0
  base="$(find_python)" || exit 1
  stamp="$(environment_stamp "$base")"
  [ "$(cat "$VENV/stamp" 2>/dev/null)" = "$stamp" ] && return
  # Two scripts must not write one directory at the same time. mkdir is atomic, on every system.
  until mkdir "$VENV.lock" 2>/dev/null; do
    owner="$(cat "$VENV.lock/pid" 2>/dev/null || true)"
    if [ -n "$owner" ] && ! kill -0 "$owner" 2>/dev/null; then
      rm -rf "$VENV.lock" # the script that made it was killed
      continue
    fi
    [ "$waited" -gt 0 ] || say "waiting for another script of launch/ to finish $VENV"
    waited=$((waited + 2))
    [ "$waited" -le 1800 ] || die "$VENV.lock is still there after 30 minutes." \
      "If no other script of launch/ runs: rm -r $VENV.lock"
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
# All processes share the compiled programs in this directory, so a rerun does not compile again.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"
