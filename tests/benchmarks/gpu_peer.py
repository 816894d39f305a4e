"""OpenFlamingo against ours on one device, for gpu.py: the same weights, one process.

Equality is tested in float32 with full precision of products: the tokens of an answer, and the
first loss. Times are in bfloat16: theirs as its training program with --precision=amp_bfloat16 and
as a model of bfloat16 weights in generation, ours with `precision.compute` and
`InferenceConfig.compute`. Both sides run in turn; the best of the rounds counts.
"""

import dataclasses
import os
import shutil
import tempfile
from typing import Any

import jax
import torch

from tests.benchmarks.gpu import result
from tests.benchmarks.open_flamingo import LOSSES_AGREE, Generation, Pair, Training, best
from tests.parity import open_flamingo_models as models

# The weights go from theirs to ours through files.
MEMORY, FILES = "/dev/shm", 4e10


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        sizes: of the model.
        pages: rows of the training step.
        new: tokens of an answer.
        generation: (prompts, shots, beams), the most telling ones first.
        rounds: of each.
    """

    sizes: models.Sizes
    pages: int
    new: int
    generation: tuple[tuple[int, int, int], ...]
    rounds: int


PLANS = {
    # OpenFlamingo-3B: MPT-1B, CLIP ViT-L/14, a gated layer before every block
    "full": Plan(
        models.Sizes(
            pieces=50_277, table=50_432, width=2_048, num_heads=16, num_layers=24, length=2_048,
            vision_width=1_024, vision_layers=24, vision_heads=16, vision_mlp=4_096,
            image_size=224, patch_size=14,
        ),
        pages=32,
        new=32,
        generation=tuple(
            (rows, shots, beams) for beams in (1, 3) for shots in (4, 32, 0) for rows in (1, 16)
        ),
        rounds=2,
    ),
    "small": Plan(
        dataclasses.replace(models.TINY, length=256),
        pages=2,
        new=4,
        generation=((2, 1, 1), (1, 0, 3)),
        rounds=1,
    ),
}  # fmt: skip


def measure(size: str) -> None:
    """Measures the training step, then generation."""
    plan = PLANS[size]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.backends.cudnn.allow_tf32 = False  # of products it is off already
    if os.path.isdir(MEMORY) and shutil.disk_usage(MEMORY).free > FILES:
        tempfile.tempdir = MEMORY
    pair = Pair.make(len(os.sched_getaffinity(0)), plan.sizes, device)
    weights = [leaf.detach().clone() for leaf in pair.theirs.parameters()]
    with jax.default_matmul_precision("highest"):
        compare_tokens(pair, plan)
        compare_losses(pair)
    restore(pair, weights)
    training(pair, plan)
    restore(pair, weights)
    del weights
    pair.theirs.eval().to(torch.bfloat16)
    for rows, shots, beams in plan.generation:
        generation(pair, plan, rows, shots, beams)


def restore(pair: Pair, weights: list[torch.Tensor]) -> None:
    """Gives theirs the weights that it had."""
    with torch.no_grad():
        for leaf, value in zip(pair.theirs.parameters(), weights, strict=True):
            leaf.copy_(value)


def compare_tokens(pair: Pair, plan: Plan) -> None:
    """Compares the answer to one prompt of one example, in float32."""
    side = Generation(pair, 1, 1)
    ours, theirs = side.ours(plan.new), side.of_theirs(plan.new)
    equal = sum(a == b for a, b in zip(ours[0], theirs[0], strict=True))
    result(
        "peer, tokens in float32",
        f"{equal} of {plan.new} are equal",
        equal=equal,
        tokens=plan.new,
    )


def compare_losses(pair: Pair) -> None:
    """Compares the loss of two pages, in float32."""
    side = Training(pair, 2)
    ours, theirs = side.ours(), side.of_theirs()
    agree = abs(ours - theirs) <= LOSSES_AGREE * theirs
    result(
        "peer, first loss in float32",
        f"ours {ours:.6f}, theirs {theirs:.6f}: {'equal' if agree else 'NOT equal'} within "
        f"{LOSSES_AGREE:g}",
        ours=ours,
        theirs=theirs,
        agree=agree,
    )


def training(pair: Pair, plan: Plan) -> None:
    """Times the training step in bfloat16."""
    side = Training(pair, plan.pages, "bfloat16")
    losses = side.ours(), side.of_theirs()
    report(
        f"peer, training step of {plan.pages} pages",
        best({"ours": side.ours, "theirs": side.of_theirs}, plan.rounds),
        f"; first losses {losses[0]:.4f} and {losses[1]:.4f}",
        first_losses=losses,
    )


def generation(pair: Pair, plan: Plan, rows: int, shots: int, beams: int) -> None:
    """Times whole calls of generation in bfloat16."""
    side = Generation(pair, rows, shots, beams=beams, compute="bfloat16")
    ours, theirs = side.ours(plan.new), side.of_theirs(plan.new)
    pairs = [both for rows in zip(ours, theirs, strict=True) for both in zip(*rows, strict=True)]
    equal = sum(a == b for a, b in pairs) / len(pairs)
    report(
        f"peer, generation of {rows} x {plan.new} tokens, {shots} shots, "
        f"{'greedy' if beams == 1 else f'{beams} beams'}",
        best(
            {"ours": lambda: side.ours(plan.new), "theirs": lambda: side.of_theirs(plan.new)},
            plan.rounds,
        ),
        f"; {equal:.0%} of the tokens are equal",
        equal_tokens=equal,
    )


def report(name: str, times: dict[str, float], more: str, **numbers: Any) -> None:
    """Hands on the seconds of both sides, and their ratio."""
    ratio = times["theirs"] / times["ours"]
    result(
        name,
        f"ours {times['ours']:.3f} s, theirs {times['theirs']:.3f} s, ratio {ratio:.2f}{more}",
        ratio=ratio,
        **times,
        **numbers,
    )
