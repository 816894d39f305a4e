"""Measures the exact search of RICES against the bare product of the same two matrices.

    python -m tests.benchmarks.rices [--supports=100000] [--queries=1000] [--width=1376] [--k=32]
        [--rounds=5]

Both are timed in turn, in one process and on the same device; the best of the rounds counts. The
bare product is that of jax and of numpy, in float32, without its result. The search starts from
saved features: it puts them on the device, multiplies, scales and selects.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.inference.nearest import nearest


def seconds(run: Callable[[], object]) -> float:
    """The time of one run."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {
        "supports": 100_000,
        "queries": 1_000,
        "width": 1376,
        "k": 32,
        "rounds": 5,
    }.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    a = parser.parse_args()
    rng = np.random.default_rng(0)
    supports = rng.standard_normal((a.supports, a.width), np.float32)
    queries = rng.standard_normal((a.queries, a.width), np.float32)
    product = jax.jit(lambda q, s: jnp.einsum("qe,ne->qn", q, s, precision="highest"))
    placed = jax.block_until_ready((jnp.asarray(queries), jnp.asarray(supports)))
    runs = {
        "jax matmul, features on the device": lambda: product(*placed),
        "jax matmul": lambda: product(jnp.asarray(queries), jnp.asarray(supports)),
        "numpy matmul": lambda: queries @ supports.T,
        "search": lambda: nearest(queries, supports, a.k),
    }
    times: dict[str, list[float]] = {name: [seconds(run)] for name, run in runs.items()}  # compiles
    times = {name: [] for name in times}
    for _ in range(a.rounds):
        for name, run in runs.items():
            times[name].append(seconds(run))
    best = {name: min(found) for name, found in times.items()}
    flops = 2 * a.supports * a.queries * a.width
    print(
        f"{a.queries} queries, {a.supports} x {a.width} supports, k = {a.k}, on "
        f"{jax.devices()[0].device_kind}"
    )
    for name, found in best.items():
        print(
            f"  {name:<36} {found:7.3f} s  {flops / found / 1e9:8.0f} GFLOP/s  "
            f"{best['search'] / found:5.2f} times in the search"
        )


if __name__ == "__main__":
    main()
