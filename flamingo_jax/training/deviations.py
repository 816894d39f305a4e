"""Where a run that goes on may differ from its checkpoint, by name: `config.resume`.

    --config.optimizer.learning_rate=1e-3 --config.resume.allow=optimizer.learning_rate
    --config.resume.skip_batches=text:5:7

Each difference is recorded in the checkpoints that follow, under "deviations": {"step": 6, "field":
"optimizer.learning_rate", "change": "0.01 -> 0.001"}. From then on the new value is the run's: a
later start with another one is refused, unless it is allowed again. Each start shows all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flamingo_jax.core import config as config_lib
from flamingo_jax.training import left_out
from flamingo_jax.training.config import TrainConfig

# Fields that change how weights are updated. A run cannot change what it is: its model, its data,
# its seed.
_MAY_BE_ALLOWED = (
    r"(optimizer|loss)(\..*)?",
    r"precision(\..*)?",
    r"data\.augment(\..*)?",
    r"data\.datasets\.[^.]+\.weight",
)
_SKIP = "resume.skip_batches"

Deviation = dict[str, Any]


def check(config: TrainConfig) -> None:
    """Checks the names in `config.resume`.

    Raises:
        ConfigError: a field in `allow` does not exist or can never change; or a dataset in
            `skip_batches` does not exist.
    """
    fields = [path for path, _ in config_lib.leaves(config_lib.to_dict(config), "")]
    for name in config.resume.allow:
        if not _may_be_allowed(name):
            raise config_lib.ConfigError(
                f"config.resume.allow has {name!r}, which cannot change in a run; expected fields "
                "of optimizer, loss, precision or data.augment, or data.datasets.NAME.weight. Give "
                "another --workdir, with --config.initial to start from these weights."
            )
        if not any(path == name or path.startswith(f"{name}.") for path in fields):
            raise config_lib.ConfigError(
                f"config.resume.allow has {name!r}, and the config has no such field: write it as "
                "on the command line, without config., such as optimizer.learning_rate."
            )
    for name in left_out.spans(config.resume.skip_batches):
        if name not in config.data.datasets:
            raise config_lib.ConfigError(
                f"config.resume.skip_batches has the dataset {name!r}; expected one of "
                f"{sorted(config.data.datasets)}."
            )


def advice(fields: Sequence[str]) -> str:
    """Returns the end of a message about fields that differ: how to allow it, if that is possible.

    It is "" where one of them can never change.
    """
    if not all(_may_be_allowed(field) for field in fields):
        return ""
    return f"; or go on with the new values, by name: --config.resume.allow={','.join(fields)}"


def patterns(config: TrainConfig) -> tuple[str, ...]:
    """Returns regular expressions of the fields in which this start may differ."""
    allowed = tuple(rf"{re.escape(name)}(\..*)?" for name in config.resume.allow)
    return (*allowed, r"resume(\..*)?", r"deviations(\..*)?")


def recorded_patterns(record: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns regular expressions of the fields in which a run differed from its beginning."""
    fields = {deviation["field"] for deviation in record.get("deviations", ())}
    return tuple(re.escape(field) for field in sorted(fields))


def of(
    config: TrainConfig,
    theirs: Mapping[str, Any],
    ours: Mapping[str, Any],
    *,
    step: int,
    uses: Mapping[str, int],
) -> list[Deviation]:
    """Returns all deviations of a run that goes on: those of its checkpoint, and new ones.

    Args:
        config: of this start.
        theirs: the checkpoint's record, with all fields.
        ours: the record of this start.
        step: of the checkpoint.
        uses: {dataset: batches used up to there}.

    Raises:
        ConfigError: `skip_batches` is another one in what was used already.
    """
    before = tuple(theirs.get("resume", {}).get("skip_batches", ()))
    now = config.resume.skip_batches
    if not left_out.same_until(left_out.spans(before), left_out.spans(now), uses):
        used = ", ".join(f"{count} batches of {name}" for name, count in sorted(uses.items()))
        raise config_lib.ConfigError(
            f"config.resume.skip_batches is {','.join(now) or 'empty'}, and the checkpoint of step "
            f"{step} was made with {','.join(before) or 'none'}, after {used}. What was used "
            f"cannot change: give --config.resume.skip_batches={','.join(before) or '()'}, and add "
            "only batches that come later."
        )
    found = list(theirs.get("deviations", ()))
    for line in config_lib.differences(theirs, ours):
        field, _, change = line.partition(": ")
        if field == _SKIP or _matches(config.resume.allow, field):
            found.append({"step": step, "field": field, "change": change})
    return found


def describe(deviations: Sequence[Deviation]) -> list[str]:
    """Returns a line for each deviation."""
    return [
        f"This run went on at step {each['step']} with {each['field']} {each['change']}."
        for each in deviations
    ]


def _matches(names: Sequence[str], field: str) -> bool:
    return any(field == name or field.startswith(f"{name}.") for name in names)


def _may_be_allowed(field: str) -> bool:
    return any(re.fullmatch(pattern, field) for pattern in _MAY_BE_ALLOWED)
