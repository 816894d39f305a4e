r"""Writes the model card of an export, and the datasheet of a dataset.

    python -m flamingo_jax.cards --export=DIR [--results=RUN,RUN] [--overwrite]
    python -m flamingo_jax.cards --dataset=DIR [--overwrite]

It writes DIR/MODEL_CARD.md or DIR/DATASHEET.md, with the headings of the paper, from the files that
are there: model.json, config.json, results.json of evaluations; dataset_info.json, report.json,
pipeline.json. What they do not say is "not stated: fill in". A card that a person has edited is not
replaced without --overwrite.
"""

from __future__ import annotations

import jax
from absl import app, flags

from flamingo_jax import cli
from flamingo_jax.cards import datasheet, model_card, sections
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import PathError
from flamingo_jax.core.processes import Cluster
from flamingo_jax.data.rejected import BrokenDataset

_EXPORT = flags.DEFINE_string("export", None, "An export, or the WORKDIR that contains it.")
_RESULTS = flags.DEFINE_list("results", [], "Outputs of evaluations of this export.")
_DATASET = flags.DEFINE_string("dataset", None, "A dataset.")
_OVERWRITE = flags.DEFINE_bool("overwrite", default=False, help="Replaces edited cards.")


def main(_: list[str], __: Cluster) -> None:
    """Writes the cards that the flags name."""
    jax.config.update("jax_platforms", "cpu")
    cards = []
    if _EXPORT.value:
        cards.append(model_card.model_card(_EXPORT.value, _RESULTS.value))
    elif _RESULTS.value:
        raise app.UsageError("--results needs --export, the model that was evaluated.")
    if _DATASET.value:
        cards.append(datasheet.datasheet(_DATASET.value))
    if not cards:
        raise app.UsageError("Expected --export=DIR or --dataset=DIR.")
    for path, text in cards:
        written = sections.write(path, text, overwrite=_OVERWRITE.value)
        print(f"Wrote {written}: {text.count(sections.UNKNOWN)} answers are to be filled in.")


if __name__ == "__main__":
    expected = (CheckpointError, PathError, ConfigError, BrokenDataset, FileNotFoundError)
    cli.run(main, required=[], expected=expected)
