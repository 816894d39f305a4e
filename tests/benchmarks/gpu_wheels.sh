#!/usr/bin/env bash
# Collects the packages that tests/benchmarks/gpu.py needs on a machine without a network, which has
# JAX with CUDA, PyTorch, transformers, optax, orbax and what they need. Nothing is installed here.
#
#   tests/benchmarks/gpu_wheels.sh DIRECTORY [VERSION OF PYTHON THERE, such as 3.12]
#
# There, from the root of the clone, with a Python that has the packages above:
#   python3 -m pip install --quiet --no-index --no-deps --target SITE DIRECTORY/*.whl
#   PYTHONPATH=SITE python3 -m tests.benchmarks.gpu --json=gpu.json
#
# The versions are those of the lock files. $PYTHON chooses the Python whose pip is used here.
set -euo pipefail

directory="${1:?expected a directory for the wheels}"
version="${2:-3.12}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
pip=("${PYTHON:-$root/.venv/bin/python}" -m pip --disable-pip-version-check --quiet)
names=(
  array_record av dm-haiku dm-tree docstring_parser grain googleapis-common-protos immutabledict
  importlib_resources jmp ml_collections portpicker promise simple-parsing simplejpeg tabulate
  tensorboardX tensorflow-datasets tensorflow-metadata termcolor toml
  einops-exts ftfy open_clip_torch open_flamingo wcwidth # OpenFlamingo
)
platforms=()
for glibc in 17 24 27 28 31 34 35; do platforms+=(--platform "manylinux_2_${glibc}_x86_64"); done
platforms+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

mkdir -p "$directory"
for name in "${names[@]}"; do
  line="$(grep -hi "^${name//[-_]/[-_]}==" "$root"/launch/requirements*.lock | sort -u)" || true
  [ -n "$line" ] || { printf 'error: no lock file has %s\n' "$name" >&2; exit 1; }
  # What has no wheel is of Python alone: it is built here.
  "${pip[@]}" download --no-deps --only-binary=:all: --dest "$directory" "$line" \
    --python-version "$version" --implementation cp "${platforms[@]}" 2>/dev/null \
    || "${pip[@]}" wheel --no-deps --wheel-dir "$directory" "$line"
done
du -sh "$directory"
