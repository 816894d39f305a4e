"""The publishers of which files can be converted, by the name in `--source`."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping

from flamingo_jax.checkpoint.arrays import few, first_line
from flamingo_jax.conversion.files import by_name
from flamingo_jax.conversion.mapping import Conversion
from flamingo_jax.conversion.reading import ConversionError, passed_over
from flamingo_jax.core.paths import Path, PathError

# name of the source -> the module of this package with its `conversion(inputs) -> Conversion`
SOURCES: Mapping[str, str] = {
    "nfnet_deepmind": "nfnet_deepmind",
    "timm_nfnet": "timm_nfnet",
    "timm_vit": "timm_vit",
    "clip": "clip",
    "open_clip": "open_clip",
    "siglip": "siglip",
    "dinov2": "dinov2",
    "mllama_vision": "mllama_vision",
    "hf_lm": "hf_lm",
    "open_flamingo": "open_flamingo",
    "idefics": "idefics",
    "mllama": "mllama",
}
# what a source raises if a field of a config is a list, say, where a number should be
_ODD_VALUES = (AttributeError, ArithmeticError, LookupError, TypeError, ValueError)
# name of the source -> the module with its `write(input, output) -> str`, for those that are
# converted in both directions
BACK: Mapping[str, str] = {"open_flamingo": "export_open_flamingo"}


@dataclasses.dataclass(frozen=True)
class Inputs:
    """The inputs from the command line.

    Attributes:
        input: the file or the directory that is converted, or the name of a repository
            (`checkpoint.hub`); so are the next two.
        lm: directory of the language model, if it is not part of `input` (open_flamingo).
        vision: file or directory of the vision encoder, likewise.
        options: further options by name; see the module of the source.
    """

    input: Path
    lm: Path | None = None
    vision: Path | None = None
    options: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def directory(self) -> Path:
        """The directory that `input` is, or is in; the configs and the tokenizer are there."""
        return self.input if self.input.is_dir() else self.input.parent


def describe(source: str, inputs: Inputs) -> Conversion:
    """Returns the conversion of a publisher's files; reads names and shapes of weights, no data.

    Files that an input names by org/name are fetched first.

    Raises:
        ConversionError: if there is no such source, the files are of another kind, or a config has
            a value that cannot be.
        HubError: if an input is the name of a repository whose files cannot be fetched.
    """
    if source not in SOURCES:
        raise ConversionError(
            f"There is no source {source!r}; expected one of {', '.join(SOURCES)}."
        )
    module = importlib.import_module(f"flamingo_jax.conversion.{SOURCES[source]}")
    first = getattr(module, "FILES", ())
    inputs = dataclasses.replace(
        inputs,
        input=by_name.local(inputs.input, first),
        lm=inputs.lm and by_name.local(inputs.lm),
        vision=inputs.vision and by_name.local(inputs.vision),
    )
    try:
        conversion = module.conversion(inputs)
    except (ConversionError, PathError):
        raise
    except _ODD_VALUES as error:
        raise ConversionError(
            f"The config next to {inputs.input} has a value of a kind that no model of "
            f"--source={source} has: {first_line(error)}. Compare it with the publisher's."
        ) from error
    notes = list(conversion.tokenizer.notes) if conversion.tokenizer else []
    if inputs.input.is_dir() and (names := passed_over(inputs.input, first=first)):
        notes.append(f"{len(names)} files next to the model are not read: {few(names)}.")
    return dataclasses.replace(conversion, notes=(*conversion.notes, *notes))


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
