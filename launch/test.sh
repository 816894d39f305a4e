#!/usr/bin/env bash
# Makes the environment, and runs linters, type checker and tests. Arguments go to pytest:
#   launch/test.sh                          all tests except those marked slow
#   launch/test.sh --quick                  the inner loop: linters, type checker, and the tests of
#                                           core, nn, models, sharding, tokenizers, world, data
#   launch/test.sh -m slow                  the slow tests
#   launch/test.sh -m "e2e and not slow"    by marker: slow, e2e, distributed, parity, tpu_compiler
#   launch/test.sh tests/nn -k attention    some tests (and the linters, which take seconds)
#   launch/test.sh -n 8                     with eight processes instead of two
set -euo pipefail
# shellcheck source=launch/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

quick=()
if [ "${1:-}" = --quick ]; then
  shift
  quick=(-m "not (slow or e2e or distributed or parity or tpu_compiler)")
  for part in core nn models sharding tokenizers world data test_{style,imports,launch}.py; do
    quick+=("tests/$part")
  done
fi

# Installs the packages of a lock file if some are missing. $1: the file; the rest: pip's options.
add() {
  local lock="$1"
  shift
  "$PYTHON" - "$lock" 2>/dev/null <<'PY' && return
import importlib.metadata, sys
for line in open(sys.argv[1]):
    name, _, version = line.partition("#")[0].strip().partition("==")
    # 2.13.0+cpu counts as 2.13.0
    if name and importlib.metadata.version(name).partition("+")[0] != version:
        sys.exit(1)
PY
  "$PYTHON" -m pip install --quiet --disable-pip-version-check "$@" --requirement "$lock" \
    || die "installing $lock into $VENV failed (the reason is above)"
}

# Installs a Debian package that some tests need. Without it they are skipped, and say so.
# $1: the package; $2: what is skipped.
add_for_tests() {
  apt_install "$1" || say "note: $1 is not installed; $2 will be skipped"
}

# Installs what only the whole suite needs.
install_all() {
  # The test of these scripts.
  command -v shellcheck >/dev/null 2>&1 || add_for_tests shellcheck "its test"
  # The test that opens the page of samples (--pipeline=inspect) in a browser.
  command -v chromium >/dev/null 2>&1 || add_for_tests chromium "its test"
  # CIDEr's tokenizer, and the words of OKVQA's and NextQA's metrics.
  command -v java >/dev/null 2>&1 || add_for_tests default-jre-headless "the tests of CIDEr"
  [ -e /usr/share/wordnet/data.noun ] \
    || add_for_tests wordnet-base "the tests of metrics that use it"

  # The planner's tests compile for TPUs with libtpu, which exists for Linux on x86-64.
  add "$ROOT/launch/requirements_tpu.lock"
  # The tests of importers, and of parity with other implementations (the peers). The peers'
  # requirements contradict each other, and are not installed.
  add "$ROOT/launch/requirements_parity.lock"
  add "$ROOT/launch/requirements_peers.lock" --no-deps
  # The tests of the server, the page and the notebooks.
  add "$ROOT/launch/requirements_doors.lock"
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
# The tests run even if a linter fails, so that one run reports everything.
check "pytest" "$PYTHON" -m pytest --numprocesses 2 ${quick[@]+"${quick[@]}"} "$@"

if [ "${#failed[@]}" -gt 0 ]; then
  say "failed:"
  printf '  %s\n' "${failed[@]}" >&2
  exit 1
fi
