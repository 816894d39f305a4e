#!/usr/bin/env bash
# From a fresh clone: the environment, the linters, the type checker, the tests. Arguments go to pytest:
#   launch/test.sh                          everything but the tests marked slow
#   launch/test.sh --quick                  the inner loop: linters, type checker, and the tests of core, nn, models, sharding, tokenizers, world, data
#   launch/test.sh -m slow                  the slow ones
#   launch/test.sh -m "e2e and not slow"    by marker: slow, e2e, distributed, parity, tpu_compiler
#   launch/test.sh tests/nn -k attention    a part (the linters run all the same; they take seconds)
#   launch/test.sh -n 8                     with eight processes in place of two
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

quick=()
if [ "${1:-}" = --quick ]; then
  shift
  quick=(-m "not (slow or e2e or distributed or parity or tpu_compiler)")
  for part in core nn models sharding tokenizers world data test_style.py test_imports.py test_launch.py; do
    quick+=("tests/$part")
  done
fi

# Installs what the environment lacks. $1: a lock file; the rest: options of pip.
add() {
  local lock="$1"
  shift
  "$PYTHON" - "$lock" 2>/dev/null <<'PY' && return
import importlib.metadata, sys
for line in open(sys.argv[1]):
    name, _, version = line.partition("#")[0].strip().partition("==")
    if name and importlib.metadata.version(name).partition("+")[0] != version:  # 2.13.0+cpu is 2.13.0
        sys.exit(1)
PY
  "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@" --requirement "$lock" \
    || die "installing $lock into $VENV failed (the reason is above)"
}

# Installs what only the whole suite needs.
install_all() {
  # For the test of these scripts; without it that test is skipped and says so.
  command -v shellcheck >/dev/null 2>&1 || apt_install shellcheck || say "note: shellcheck is not installed; its test will be skipped"

  # For the test that opens the page of samples (--pipeline=inspect) in a browser; without one that test is skipped and says so.
  command -v chromium >/dev/null 2>&1 || apt_install chromium || say "note: chromium is not installed; its test will be skipped"

  # For CIDEr's tokenizer, and for the words of OKVQA's and NextQA's metrics.
  command -v java >/dev/null 2>&1 || apt_install default-jre-headless || say "note: java is not installed; CIDEr's tests will be skipped"
  [ -e /usr/share/wordnet/data.noun ] || apt_install wordnet-base || say "note: wordnet-base is not installed; the tests of metrics that use it will be skipped"

  # For the planner's tests, which compile for TPUs: libtpu, which exists for Linux on x86-64.
  add "$ROOT/launch/requirements_tpu.lock"
  # For the tests of importers, and of parity with other implementations. The peers ask for what cannot be had together.
  add "$ROOT/launch/requirements_parity.lock"
  add "$ROOT/launch/requirements_peers.lock" --no-deps
}
[ "${#quick[@]}" -gt 0 ] || install_all

failed=()
check() {
  say "== $1"
  shift
  "$@" || failed+=("$*")
}
check "ruff check" "$PYTHON" -m ruff check .
check "ruff format" "$PYTHON" -m ruff format --check --quiet .
check "mypy" "$PYTHON" -m mypy
# Linters first in time, but the tests run even when one complains: one run tells everything.
check "pytest" "$PYTHON" -m pytest --numprocesses 2 ${quick[@]+"${quick[@]}"} "$@"

if [ "${#failed[@]}" -gt 0 ]; then
  say "failed:"
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
fi
