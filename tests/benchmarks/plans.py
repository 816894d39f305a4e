r"""Computes the tables of flamingo_jax/planning/README.md, one plan after the other.

    python -m tests.benchmarks.plans --output=DIR [--only=80b]

Each row is a run of `python -m flamingo_jax.plan`, whose command is printed. Its JSON is kept in
DIR; a row that is there is not computed again. It needs libtpu, and no TPU. A plan of the 80B with
all datasets takes about 5 minutes on 2 calm CPU cores, and up to 16 GiB of memory; the others take
less.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys

_80B = ("configs/flamingo_80b.py", "v4:8x12x16")
_M3W = "--datasets=m3w"
_WHOLE = "--config.mesh.halves=False"  # all rows go through a block at once
_128_CHIPS = ("--config.mesh.replica=1", "--config.mesh.data=8", "--config.mesh.model_chips=()")
# 32 GiB on each of 4 chips: 4 rows at a time, and towers in 8 bits.
_SMALLEST = (
    *("--config.mesh.data=4", "--config.precision.frozen=int8"),
    "--config.data.datasets.m3w.chunks=32",
)

# By name of the row: the config, the topology, and options.
ROWS: dict[str, tuple[str, ...]] = {
    "80b": _80B,
    "80b, all rows": (*_80B, _WHOLE),
    "80b, groups of 8": ("configs/flamingo_80b.py:8way", "v4:8x12x16"),
    "80b, groups of 8, all rows": ("configs/flamingo_80b.py:8way", "v4:8x12x16", _WHOLE),
    "80b, 8x2x1": (*_80B, _WHOLE, "--config.mesh.model_chips=8,2,1"),
    "80b, 4x4x1": (*_80B, _WHOLE, "--config.mesh.model_chips=4,4,1"),
    "80b, 1x1x16": (*_80B, _WHOLE, "--config.mesh.model_chips=1,1,16"),
    "80b, m3w": (*_80B, _M3W),
    "80b, m3w, groups of 8": ("configs/flamingo_80b.py:8way", "v4:8x12x16", _M3W),
    "80b, m3w, all rows": (*_80B, _M3W, _WHOLE),
    "80b, m3w, all rows, remat full": (*_80B, _M3W, _WHOLE, "--config.model.lm.remat=full"),
    "80b, m3w, no sequence parallelism": (*_80B, _M3W, "--config.mesh.sequence_parallel=False"),
    "80b, m3w, all rows, a pool of 96": (
        *(*_80B, _M3W, _WHOLE),
        "--config.data.datasets.m3w.pool=96",
    ),
    "80b, m3w, two slices": (
        *(_80B[0], "v4:8x8x16", _M3W),
        *("--config.mesh.slices=2", "--config.mesh.replica=4"),
    ),
    "80b, prefill": (_80B[0], "v4:4x4x8", "--program=prefill", *_128_CHIPS),
    "80b, decode": (_80B[0], "v4:4x4x8", "--program=decode", *_128_CHIPS),
    "80b, decode, all images": (
        *(_80B[0], "v4:4x4x8", "--program=decode", *_128_CHIPS),
        "--config.model.xattn.attend=all",
    ),
    "3b, v4": ("configs/flamingo_3b.py", "v4:4x4x4", _M3W),
    "3b, v4, all": ("configs/flamingo_3b.py", "v4:4x4x4"),
    "3b, v4, all, 4x": ("configs/flamingo_3b.py:4x", "v4:4x4x4"),
    "3b, v4, all, one dataset per update": (
        *("configs/flamingo_3b.py", "v4:4x4x4"),
        "--config.mixing=round_robin",
    ),
    "3b, v5e": ("configs/flamingo_3b.py", "v5e:8x8", _M3W),
    "3b, v6e": ("configs/flamingo_3b.py", "v6e:8x8", _M3W),
    "3b, v5p": ("configs/flamingo_3b.py", "v5p:4x4x4", _M3W),
    "3b, v5p, two slices": (
        *("configs/flamingo_3b.py", "v5p:4x4x4", _M3W),
        *("--config.mesh.slices=2", "--config.mesh.replica=2"),
    ),
    "9b, v4": ("configs/flamingo_9b.py", "v4:4x4x4", _M3W, "--config.mesh.data=64"),
    "9b, v4, all": ("configs/flamingo_9b.py", "v4:4x4x8"),
    "9b, v4, all, 4x": ("configs/flamingo_9b.py:4x", "v4:4x4x8"),
    "9b, v4, all, 4x, int8": (
        *("configs/flamingo_9b.py:4x", "v4:4x4x8"),
        "--config.precision.frozen=int8",
    ),
    "9b, v4, int8, 4 chips": ("configs/flamingo_9b.py", "v4:2x2x1", _M3W, *_SMALLEST),
    "9b, v5p": ("configs/flamingo_9b.py", "v5p:4x4x4", _M3W, "--config.mesh.data=64"),
    "9b, v5e": ("configs/flamingo_9b.py", "v5e:8x16", _M3W),
    "9b, v6e": ("configs/flamingo_9b.py", "v6e:8x16", _M3W),
    "nfnet_f6": ("configs/contrastive_f6.py", "v4:8x8x8"),
    "idefics_9b": ("configs/idefics_9b.py", "v4:4x4x4"),
    "idefics_80b, pages": ("configs/idefics_80b.py", "v4:4x8x8", "--datasets=obelics"),
    "idefics_80b, pairs": ("configs/idefics_80b.py", "v4:4x8x8", "--datasets=laion"),
}


def main() -> None:
    """Prints one line of a table for each row."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--only", default="", help="rows whose names begin with this")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print("| | GiB per chip | compute, ms | exposed communication, ms | step, ms | MFU |")
    print("|---|---|---|---|---|---|", flush=True)
    for name, (config, topology, *options) in ROWS.items():
        if name.startswith(arguments.only):
            kept = arguments.output / f"{name.replace(', ', '_').replace(' ', '_')}.json"
            flags = [f"--config={config}", f"--topology={topology}", *options]
            command = ["-m", "flamingo_jax.plan", *flags, f"--json={kept}"]
            if not kept.exists():
                print(shlex.join(["python", *command]), file=sys.stderr, flush=True)
                done = subprocess.run([sys.executable, *command], stdout=subprocess.DEVNULL)
                if done.returncode not in (0, 3):
                    sys.exit(done.returncode)
            print(line(name, json.loads(kept.read_text())), flush=True)


def line(name: str, plan: dict) -> str:
    """Returns a plan as a line of the table; without times if it does not fit."""
    size = plan["hbm_bytes"]["total"] / 2**30
    if not plan["fits"]:
        capacity = plan["hbm_capacity_bytes"] / 2**30
        return f"| {name} | {size:.1f} of {capacity:.0f}: does not fit | | | | |"
    times = ("compute_seconds", "exposed_communication_seconds", "step_seconds")
    milliseconds = " | ".join(f"{1000 * plan[key]:,.0f}" for key in times)
    return f"| {name} | {size:.1f} | {milliseconds} | {plan['mfu']:.3f} |"


if __name__ == "__main__":
    main()
