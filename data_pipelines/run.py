"""The one program of the data pipelines.

    python -m data_pipelines.run --pipeline=world --output=runs/demo/world --seed=1 --size=demo
    python -m data_pipelines.run --pipeline=tokenizer --input=runs/demo/world/text --output=runs/demo/tokenizer --model_type=word

The output appears when it is whole: it is written beside its place and renamed, with OUTPUT/pipeline.json saying what was asked for and what came
out. Asked again for the same, the program says so and does nothing; it never writes over something else.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import sys
import time
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging
from etils import epath

from data_pipelines import tokenizer, world
from data_pipelines.write_records import staged

MARK = "pipeline.json"

_PIPELINE = flags.DEFINE_string("pipeline", None, "What to make; one of the names in PIPELINES.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory to make.")
_INPUT = flags.DEFINE_string("input", "", "tokenizer: directory of the dataset to read.")
_SEED = flags.DEFINE_integer("seed", 1, "world: the seed that everything is drawn from.")
_SIZE = flags.DEFINE_enum("size", "demo", sorted(world.SIZES), "world: preset of the numbers of records.")
_NUM = {
    field.name: flags.DEFINE_integer(
        f"num_{field.name}", None, f"world: `{field.name}` of WorldSize, in place of the preset's."
    )
    for field in dataclasses.fields(world.WorldSize)
}
_PAGE_MIX = flags.DEFINE_list("page_mix", None, "world: shares of binding, format and question pages.")
_TEXT_MIX = flags.DEFINE_list(
    "text_mix", None, "world: shares of dictionary, binding, format, question and caption documents."
)
_VOCAB_SIZE = flags.DEFINE_integer("vocab_size", 32_000, "tokenizer: the most pieces.")
_MODEL_TYPE = flags.DEFINE_string("model_type", "unigram", f"tokenizer: one of {', '.join(tokenizer.MODEL_TYPES)}.")


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A way to make a dataset.

    Attributes:
      request: reads the flags into a frozen dataclass of everything that decides the output.
      build: makes the output of a request in a directory that is there; returns what it counted.
    """

    request: Callable[[], Any]
    build: Callable[[Any, epath.Path], dict[str, int]]


def _world_request() -> world.WorldRequest:
    numbers = {name: flag.value for name, flag in _NUM.items() if flag.value is not None}
    return world.WorldRequest(
        seed=_SEED.value,
        size=dataclasses.replace(world.SIZES[_SIZE.value], **numbers),
        page_mix=_shares(world.PageMix, "page_mix", _PAGE_MIX.value),
        text_mix=_shares(world.TextMix, "text_mix", _TEXT_MIX.value),
    )


def _shares(mix: type, name: str, values: list[str] | None) -> Any:
    if values is None:
        return mix()
    fields = [field.name for field in dataclasses.fields(mix)]
    try:
        shares = [float(value) for value in values]
    except ValueError:
        shares = []
    if len(shares) != len(fields) or min(shares) < 0 or sum(shares) <= 0:
        raise ValueError(
            f"--{name}={','.join(values)}: expected {len(fields)} numbers, the shares of {', '.join(fields)}."
        )
    return mix(*shares)


PIPELINES = {
    "tokenizer": Pipeline(
        lambda: tokenizer.TokenizerRequest(_INPUT.value, _VOCAB_SIZE.value, _MODEL_TYPE.value), tokenizer.build
    ),
    "world": Pipeline(_world_request, world.build),
}


def make(name: str, request: Any, build: Callable[[Any, epath.Path], dict[str, int]], output: str) -> bool:
    """Makes the output of a request, unless it is there.

    Args:
      name: of the pipeline.
      request: a frozen dataclass.
      build: as in `Pipeline`.
      output: the directory to make.

    Returns:
      Whether something was done.

    Raises:
      ValueError: the directory holds something else.
    """
    target = epath.Path(output)
    asked = json.loads(json.dumps({"pipeline": name, "request": dataclasses.asdict(request)}))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        mark = target / MARK
        found = json.loads(mark.read_text()) if mark.exists() else {}
        if {key: found.get(key) for key in asked} != asked:
            what = f"the output of another request ({_differences(found, asked)})" if found else "something else"
            raise ValueError(f"{target} holds {what}. Remove it, or give another --output.")
        print(f"{name}: {target} is complete, nothing to do")
        return False
    start = time.monotonic()
    with staged(target) as staging:
        whole = staging / "whole"
        whole.mkdir()
        counts = build(request, whole)
        (whole / MARK).write_text(json.dumps(asked | {"counts": counts}, indent=2) + "\n")
        if target.exists():  # an empty directory
            target.rmdir()
        whole.rename(target)
    print(f"{name}: {target} in {time.monotonic() - start:.1f} s")
    for key, count in counts.items():
        print(f"  {key:<20}{count:>10}")
    return True


def _differences(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """The first few fields in which two requests differ, as "request.seed: 1 there, 2 asked for"."""

    def flat(tree: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        return {
            path: leaf
            for key, value in tree.items()
            for path, leaf in flat(value, f"{prefix}.{key}".strip(".")).items()
        }

    old, new = flat({key: found.get(key) for key in asked}, ""), flat(asked, "")
    changed = [path for path in old | new if old.get(path) != new.get(path)]
    return "; ".join(f"{path}: {old.get(path)!r:.60} there, {new.get(path)!r:.60} asked for" for path in changed[:3])


def _run(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(f"Unexpected arguments {arguments}: every option has the form --name=value.")
    name = _PIPELINE.value
    if name not in PIPELINES:
        close = difflib.get_close_matches(name or "", PIPELINES, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"--pipeline={name}: expected one of {', '.join(PIPELINES)}.{suggestion}")
    if not _OUTPUT.value:
        raise ValueError("--output is missing: give the directory to make.")
    make(name, PIPELINES[name].request(), PIPELINES[name].build, _OUTPUT.value)


def main(argv: list[str]) -> None:
    """Reads the flags and makes what they ask for; what is wrong with them is said in one line."""
    logging.set_verbosity(logging.WARNING)  # TFDS tells of every file
    try:
        _run(argv[1:])
    except ValueError as error:
        sys.exit(f"data_pipelines.run: {error}")
    except OSError as error:
        sys.exit(f"data_pipelines.run: cannot make {_OUTPUT.value}: {error}. Give a writable place with room.")


if __name__ == "__main__":
    app.run(main)
