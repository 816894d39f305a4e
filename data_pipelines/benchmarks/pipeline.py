"""Turns the training split of a benchmark into records, to fine-tune on it (paper, B.2.2).

    python -m data_pipelines.run --pipeline=benchmark --task=vqav2 --input=/data/vqav2 \
        --output=/data/records/vqav2

    train        training examples that share no picture with the validation queries
    validation   the queries of `evaluate --config.split=validation` with the same seed

The paper does not name the validation examples of its grid: here they are those of the few-shot
evaluation, which are drawn from the training split (paper, B.1.4).
`report.json` counts all that is left out: examples that show a picture of the validation, that have
no answer, or that lack their file.
"""

from __future__ import annotations

import functools

from etils import epath

from data_pipelines.benchmarks.records import BenchmarkRequest, kind_of_records, read_unit
from data_pipelines.collect import collect
from data_pipelines.on_beam import Execution


def build(request: BenchmarkRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the training split of a benchmark as a dataset.

    Returns:
      The counts of what was read, written and left out.

    Raises:
      ValueError: there is no such benchmark, a file of it is missing or damaged, or too many of its
        pictures are.
    """
    if how.validation_share:
        raise ValueError(
            "benchmark: --validation_share has no effect, since --validation holds back the "
            "queries that `evaluate` asks: leave it out."
        )
    from data_pipelines.benchmarks.items import training_units

    units, are_videos = training_units(request)
    kind = kind_of_records(request.form, are_videos=are_videos)
    return collect(
        units,
        functools.partial(read_unit, request, kind),
        kind,
        output,
        how,
        has_validation=request.validation and request.form == "answers",
    ).table()
