"""Measures NFNet's forward pass against timm's dm_nfnet, and the time of each stage.

    python -m tests.benchmarks.vision [--variant=F0] [--image_size=320] [--batch=1] [--rounds=5]
        [--dtypes=float32,bfloat16]

Both run on the same processor in one process, in turn, round by round; the best of the rounds
counts. The output is the last grid of features, without a classifier; weights are those of the
initialisation. timm standardises its weights at each call; so does ours, except in the compute
form. timm runs in both memory layouts. The share of a stage is the difference between two networks
that end after it and before it.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import torch

from flamingo_jax.core.axes import with_layout
from flamingo_jax.models import frozen
from flamingo_jax.models.nfnet import NFNet, NFNetConfig
from flamingo_jax.models.sizes import NFNETS
from flamingo_jax.planning.flops import vision_forward
from flamingo_jax.sharding.layout import Layout
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.parity import stand_ins

Run = Callable[[], object]


def ours(config: NFNetConfig, dtype: Any, images: np.ndarray) -> Run:
    """A compiled forward pass, weights placed and cast."""
    layout = Layout(make_mesh(MeshConfig(), jax.devices()[:1]))

    def forward(x: jax.Array) -> jax.Array:
        with with_layout(layout):
            return NFNet(config)(x)

    model = hk.without_apply_rng(hk.transform(forward))
    plain = dataclasses.replace(config, weight_standardisation="apply")
    params = jax.jit(hk.transform(lambda x: NFNet(plain)(x)).init)(jax.random.key(0), images)
    params = (
        frozen.compute_form_of_nfnet(params)
        if config.weight_standardisation == "folded"
        else params
    )
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    placed, compiled = jnp.asarray(images, dtype), jax.jit(model.apply)
    return lambda: jax.block_until_ready(compiled(params, placed))


def theirs(
    variant: str, dtype: torch.dtype, layout: torch.memory_format, images: np.ndarray
) -> Run:
    """timm's, in evaluation mode and without gradients."""
    model = stand_ins.load("timm").create_model(f"dm_nfnet_{variant.lower()}", num_classes=0).eval()
    model = model.to(dtype=dtype, memory_format=layout)
    placed = (
        torch.from_numpy(images.transpose(0, 3, 1, 2)).to(dtype).contiguous(memory_format=layout)
    )

    def run() -> object:
        with torch.inference_mode():
            return model.forward_features(placed)

    return run


def best(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Seconds of each, the best of the rounds.

    The first run of each compiles and does not count.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            found[name].append(time.perf_counter() - start)
    return {name: min(times) for name, times in found.items()}


def stages(config: NFNetConfig, dtype: Any, images: np.ndarray, rounds: int) -> dict[str, float]:
    """Seconds of the stem with the first stage, each further stage and the last convolution."""

    def cut(end: int) -> NFNetConfig:
        fields = {name: getattr(config, name)[:end] for name in ("widths", "depths", "strides")}
        return dataclasses.replace(config, **fields, final_multiplier=None)

    prefixes = {
        "stem and stage 0": cut(1),
        **{f"stage {n}": cut(n + 1) for n in range(1, len(config.depths))},
        "last conv": config,
    }
    times = best({name: ours(part, dtype, images) for name, part in prefixes.items()}, rounds)
    ends = list(times.values())
    return {
        name: max(end - start, 0.0)
        for name, start, end in zip(times, [0.0, *ends[:-1]], ends, strict=True)
    }


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variant", default="F0", choices=[name for name in NFNETS if name != "tiny"]
    )
    for name, default in {"image_size": 320, "batch": 1, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtypes", default="float32,bfloat16")
    a = parser.parse_args()
    images = np.random.default_rng(0).standard_normal(
        (a.batch, a.image_size, a.image_size, 3), np.float32
    )
    flops = a.batch * vision_forward(NFNETS[a.variant], a.image_size)
    print(
        f"NFNet-{a.variant}, {a.batch} x {a.image_size} px, {flops / 1e9:.1f} GFLOP, "
        f"{torch.get_num_threads()} threads"
    )
    config = NFNETS[a.variant]
    folded = dataclasses.replace(config, weight_standardisation="folded")
    unrolled = dataclasses.replace(folded, loop="unrolled")
    for name in a.dtypes.split(","):
        dtype, of_torch = jnp.dtype(name), getattr(torch, name)
        runs = {
            "timm": theirs(a.variant, of_torch, torch.contiguous_format, images),
            "timm, channels last": theirs(a.variant, of_torch, torch.channels_last, images),
            "ours": ours(config, dtype, images),
            "ours, folded": ours(folded, dtype, images),
            "ours, folded, unrolled": ours(unrolled, dtype, images),
        }
        times = best(runs, a.rounds)
        del runs
        fastest = min(seconds for which, seconds in times.items() if which.startswith("timm"))
        print(f"{name}, load {os.getloadavg()[0]:.1f}")
        for which, seconds in times.items():
            rate = flops / seconds / 1e9
            print(
                f"  {which:<24} {seconds:7.3f} s  {rate:6.0f} GFLOP/s  {fastest / seconds:5.2f} "
                "times timm's faster one"
            )
        parts = stages(folded, dtype, images, a.rounds)
        whole = sum(parts.values())
        print(
            "  ours, folded, by part: "
            + ", ".join(f"{part} {100 * s / whole:.0f} %" for part, s in parts.items())
        )


if __name__ == "__main__":
    main()
