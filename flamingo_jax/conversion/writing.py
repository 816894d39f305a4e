"""Writes a conversion as an export, layer by layer, so the model may be larger than memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from flamingo_jax.checkpoint import card as card_lib
from flamingo_jax.checkpoint import export as export_lib
from flamingo_jax.checkpoint.streamed import Streamed
from flamingo_jax.conversion import mapping
from flamingo_jax.conversion.mapping import (
    Constant,
    Conversion,
    ConversionPlan,
    PlannedWeight,
    Rule,
)
from flamingo_jax.conversion.reading import ConversionError, Weights
from flamingo_jax.core import config as config_lib
from flamingo_jax.core import paths, trees
from flamingo_jax.core.paths import Path, PathLike

Report = Callable[[str], None]


def write(
    conversion: Conversion,
    output: PathLike,
    *,
    dtype: Any = None,
    report: Report = lambda line: None,
) -> Path:
    """Writes the export of a conversion, or replaces it.

    Memory is needed for the sources of one slice (the largest weight of the files) and their
    conversion.

    Args:
        conversion: what is converted.
        output: the model directory.
        dtype: dtype of all weights; None = as stored (float16 and float64 become float32).
        report: called with a line before each weight.

    Returns:
        `output`.

    Raises:
        ConversionError: if the mapping does not fit the files (then nothing is written), a file is
            damaged, a weight is not finite, or `output` is something else than an export. An
            export that was there stays as it was.
        CheckpointError: if the export cannot be written.
    """
    check_output(output)
    plan = mapping.plan(conversion, dtype=dtype)
    files, weights = plan.checked(conversion.files), {}
    for number, weight in enumerate(plan.weights, 1):
        parts = functools.partial(_parts, weight, files, f"{number}/{len(plan.weights)}", report)
        weights[weight.target] = Streamed(
            weight.shape, weight.dtype, parts, is_stacked=weight.is_stacked
        )
    tokenizer = conversion.tokenizer
    return export_lib.export(
        output,
        trees.unflatten(weights),
        kind=conversion.kind,
        config=config_lib.to_dict(conversion.model),
        tokenizer=tokenizer.files if tokenizer else None,
        preprocessing=conversion.preprocessing,
        step=0,
        markers=conversion.markers or (tokenizer.markers if tokenizer else None),
    )


def check_output(output: PathLike) -> None:
    """Checks that an export may be written to `output`.

    Raises:
        ConversionError: if it is a file, or a directory with other things.
    """
    place = paths.absolute(output)
    if place.is_dir() and not (place / card_lib.CARD).exists() and any(place.iterdir()):
        raise ConversionError(
            f"--output={output} is a directory that holds other things than an "
            "export. Give another."
        )
    if place.exists() and not place.is_dir():
        raise ConversionError(
            f"--output={output} is a file; expected a directory to be. Give another."
        )


def table(conversion: Conversion, *, dtype: Any = None) -> str:
    """Returns the mapping as text: a line for each weight of the model and each skipped weight.

    Raises:
        ConversionError: as `mapping.check`.
    """
    plan = mapping.plan(conversion, dtype=dtype)
    lines = [
        (_origin(weight), "->", f"{weight.target} {weight.shape} {weight.dtype}")
        for weight in plan.weights
    ]
    lines += [(name, "--", f"skipped: {why}") for name, why in sorted(plan.skipped.items())]
    width = max(len(origin) for origin, _, _ in lines)
    rows = [f"{origin:{width}}  {arrow}  {rest}" for origin, arrow, rest in lines]
    return "\n".join([*rows, *conversion.notes, _summary(plan)])


def _parts(weight: PlannedWeight, files: Weights, count: str, report: Report) -> Any:
    report(f"{count} {weight.target} {weight.shape}")
    return weight.parts(files)


def _origin(weight: PlannedWeight) -> str:
    if isinstance(weight.rule, Constant):
        return f"({weight.rule.why})"
    names = " + ".join(weight.rule.sources)
    return names if not weight.is_stacked else f"{names} ({_layers(weight.rule, weight.shape[0])})"


def _layers(rule: Rule, length: int) -> str:
    numbers = list(range(length)) if rule.layers is None else list(rule.layers)
    step = numbers[1] - numbers[0] if len(numbers) > 1 else 1
    even = list(range(numbers[0], numbers[-1] + 1, step)) == numbers if step > 0 else False
    rest = "" if even and step == 1 else f" by {step}" if even else f", {len(numbers)} of them"
    return f"{numbers[0]}..{numbers[-1]}{rest}"


def _summary(plan: ConversionPlan) -> str:
    sources = {name for weight in plan.weights for names in weight.pieces for name in names}
    size = sum(weight.size for weight in plan.weights)
    return (
        f"{len(sources)} weights of the files become {len(plan.weights)} of the model ({size:,} "
        f"numbers); {len(plan.skipped)} are skipped."
    )
