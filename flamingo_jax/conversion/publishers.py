"""The publishers of which files can be converted, by the name in `--source`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping

from flamingo_jax.conversion.mapping import Conversion
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core.paths import Path

# name of the source -> the module of this package with its `conversion(inputs) -> Conversion`
SOURCES: Mapping[str, str] = {
    "nfnet_deepmind": "nfnet_deepmind",
    "timm_nfnet": "timm_nfnet",
    "timm_vit": "timm_vit",
    "clip": "clip",
    "open_clip": "open_clip",
    "hf_lm": "hf_lm",
    "open_flamingo": "open_flamingo",
    "idefics": "idefics",
}
# name of the source -> the module with its `write(input, output) -> str`, for those that are
# converted in both directions
BACK: Mapping[str, str] = {"open_flamingo": "export_open_flamingo"}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs from the command line.

    Attributes:
        input: the file or the directory that is converted.
        lm: directory of the language model, if it is not part of `input` (open_flamingo).
        vision: file or directory of the vision encoder, likewise.
        options: further options by name; see the module of the source.
    """

    input: Path
    lm: Path | None = None
    vision: Path | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


def describe(source: str, inputs: Inputs) -> Conversion:
    """Returns the conversion of a publisher's files; reads names and shapes of weights, no data.

    Raises:
        ConversionError: if there is no such source, or the files are of another kind.
    """
    if source not in SOURCES:
        raise ConversionError(
            f"There is no source {source!r}; expected one of {', '.join(SOURCES)}."
        )
    module = importlib.import_module(f"flamingo_jax.conversion.{SOURCES[source]}")
    return module.conversion(inputs)


def write_back(source: str, checkpoint: Path, output: Path) -> str:
    """Writes a model of ours as a publisher's file; returns a line that describes it.

    Args:
        source: name of the publisher.
        checkpoint: an export, a WORKDIR or one of its steps.
        output: the file.

    Raises:
        ConversionError: if this publisher is not supported, or the model does not fit.
        CheckpointError: if there is no such checkpoint.
    """
    if source not in BACK:
        raise ConversionError(
            f"There is no way back to {source!r}; there is one to {', '.join(BACK)}."
        )
    module = importlib.import_module(f"flamingo_jax.conversion.{BACK[source]}")
    return module.write(checkpoint, output)


def check_options(inputs: Inputs, *allowed: str) -> None:
    """Checks that only inputs and options are set that a source has.

    Args:
        inputs: of the command line.
        *allowed: "lm", "vision", or names of options.

    Raises:
        ConversionError: if another one is set; names it.
    """
    values = {"lm": inputs.lm, "vision": inputs.vision, **inputs.options}
    used = [name for name, value in values.items() if value is not None]
    if unknown := [name for name in used if name not in allowed]:
        raise ConversionError(
            f"This source takes no {', '.join(unknown)}; it takes "
            f"{', '.join(allowed) or 'the input alone'}."
        )
