"""The publishers whose files can be converted, by the name that `--source` takes."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping

from flamingo_jax.conversion.mapping import Conversion
from flamingo_jax.conversion.reading import ConversionError
from flamingo_jax.core.paths import Path

# name of the source -> the module of this package that has its `conversion(inputs) -> Conversion`
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
# name of the source -> the module that has its `write(input, output) -> str`, for models that can
# go back
BACK: Mapping[str, str] = {"open_flamingo": "export_open_flamingo"}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What the command line names.

    Attributes:
        input: the file or the directory that is converted.
        lm: the language model's directory, for a publisher who left it out (open_flamingo).
        vision: the vision encoder's, likewise.
        options: what a source takes beside, by name; see its module.
    """

    input: Path
    lm: Path | None = None
    vision: Path | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)


def describe(source: str, inputs: Inputs) -> Conversion:
    """Returns the conversion of a publisher's files; of the weights only names and shapes are read.

    Raises:
        ConversionError: if there is no such source, or the files are not what it reads.
    """
    if source not in SOURCES:
        raise ConversionError(
            f"There is no source {source!r}; expected one of {', '.join(SOURCES)}."
        )
    module = importlib.import_module(f"flamingo_jax.conversion.{SOURCES[source]}")
    return module.conversion(inputs)


def write_back(source: str, checkpoint: Path, output: Path) -> str:
    """Writes a model of ours as a publisher's file; returns one line about it.

    Args:
        source: whose file it shall be.
        checkpoint: an export, a WORKDIR or one of its steps.
        output: the file.

    Raises:
        ConversionError: if there is no such way back, or the model does not fit.
        CheckpointError: if there is no such checkpoint.
    """
    if source not in BACK:
        raise ConversionError(
            f"There is no way back to {source!r}; there is one to {', '.join(BACK)}."
        )
    module = importlib.import_module(f"flamingo_jax.conversion.{BACK[source]}")
    return module.write(checkpoint, output)


def check_options(inputs: Inputs, *allowed: str) -> None:
    """Refuses what a source does not take.

    Args:
        inputs: of the command line.
        *allowed: "lm", "vision", or names of options.

    Raises:
        ConversionError: naming what is not taken.
    """
    given = {"lm": inputs.lm, "vision": inputs.vision, **inputs.options}
    if unknown := [
        name for name, value in given.items() if value is not None and name not in allowed
    ]:
        raise ConversionError(
            f"This source takes no {', '.join(unknown)}; it takes "
            f"{', '.join(allowed) or 'the input alone'}."
        )
