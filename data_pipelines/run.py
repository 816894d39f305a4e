r"""The program of the data pipelines.

    python -m data_pipelines.run --pipeline=world --output=runs/demo/world --seed=1 --size=demo
    python -m data_pipelines.run --pipeline=tokenizer --input=runs/demo/world/text \
        --output=runs/demo/tokenizer --model_type=word
    python -m data_pipelines.run --pipeline=m3w --input=/data/crawl --output=/data/records/m3w
    python -m data_pipelines.run --help

The output is written to a temporary directory next to OUTPUT and renamed when it is complete.
OUTPUT/pipeline.json contains the request and the counts. For the same request again, the program
reports this and does nothing. It never overwrites anything else. On an object store (gs://) no
directory can be renamed. There the output is written in place, and pipeline.json is written last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from absl import app, flags, logging
from etils import epath

from data_pipelines import (
    dedup,
    documents,
    m3w,
    mmc4,
    obelics,
    options,
    pairs,
    pool,
    sample_page,
    tokenizer,
    videos,
    world,
)
from data_pipelines.benchmarks import pipeline as benchmark
from data_pipelines.benchmarks.records import BenchmarkRequest
from data_pipelines.emoji import emoji_records
from data_pipelines.inputs import folders_of_files, identity
from data_pipelines.instruct import instructions as instruct
from data_pipelines.on_beam import Execution
from data_pipelines.watchdog import WorkerDied, supervised
from data_pipelines.write_records import staged
from flamingo_jax.core import command_line, paths

MARK = "pipeline.json"

EXTRA = "flamingo_jax[pipelines]"  # brings the packages of all pipelines

# Options that name files. A request is another one if the files there have changed.
_READ = ("input", "dataset", "tokenizer", "against", "embeddings", "images", "videos")

Build = Callable[[Any, epath.Path, Execution], dict[str, int]]


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """The options of a pipeline, and the function that runs it.

    Attributes:
      options: frozen dataclass of the command-line options; its fields are flags.
      build: build(request, directory, how) writes the output into an existing directory, and
        returns what it counted.
      request: turns the options into the frozen dataclass of everything that decides the output.
      packages: packages of the extra that the pipeline imports when it runs.
    """

    options: type
    build: Build
    request: Callable[[Any], Any] = lambda asked: asked
    packages: tuple[str, ...] = ()


class MissingPackageError(ModuleNotFoundError):
    """A package that the pipeline needs is not installed."""


# All modules are imported here, because the flags are the fields of their dataclasses. None of
# them imports a package of the extra before it runs.
PIPELINES = {
    "benchmark": Pipeline(BenchmarkRequest, benchmark.build, packages=("apache_beam",)),
    "dedup": Pipeline(
        dedup.DedupRequest, dedup.build, packages=("apache_beam", "faiss", "imagehash")
    ),
    "emoji": Pipeline(
        emoji_records.EmojiRequest,
        lambda request, output, _: emoji_records.build(request, output),
    ),
    "inspect": Pipeline(sample_page.InspectRequest, sample_page.build),
    "instruct": Pipeline(instruct.InstructRequest, instruct.build, packages=("apache_beam",)),
    "m3w": Pipeline(
        m3w.M3WRequest,
        m3w.build,
        packages=("apache_beam", "idna", "py3langid", "pyarrow", "selectolax", "zstandard"),
    ),
    "mmc4": Pipeline(mmc4.MMC4Request, mmc4.build, packages=("apache_beam", "zstandard")),
    "obelics": Pipeline(obelics.ObelicsRequest, obelics.build, packages=("apache_beam", "pyarrow")),
    "pairs": Pipeline(pairs.PairsRequest, pairs.build, packages=("apache_beam",)),
    "pool": Pipeline(pool.PoolRequest, pool.build),
    "text": Pipeline(
        documents.TextRequest,
        documents.build,
        packages=("apache_beam", "google_crc32c", "pyarrow", "zstandard"),
    ),
    "tokenizer": Pipeline(
        tokenizer.TokenizerRequest, lambda request, output, _: tokenizer.build(request, output)
    ),
    "videos": Pipeline(videos.VideosRequest, videos.build, packages=("apache_beam", "zstandard")),
    "world": Pipeline(
        world.WorldOptions,
        lambda request, output, _: world.build(request, output),
        world.WorldOptions.request,
    ),
}

_PIPELINE = flags.DEFINE_string("pipeline", None, f"What to make: one of {', '.join(PIPELINES)}.")
_OUTPUT = flags.DEFINE_string("output", None, "Directory to make.")
_OPTIONS = options.Options(
    {name: pipeline.options for name, pipeline in PIPELINES.items()}, shared=Execution
)
flags.adopt_module_key_flags(options)  # --help shows them


def make(name: str, request: Any, output: str, how: Execution) -> bool:
    """Makes the output of a request, unless it exists.

    Args:
      name: of the pipeline.
      request: a frozen dataclass, as the pipeline takes it.
      output: the directory to make.
      how: how to run it.

    Returns:
      True if something was done.

    Raises:
      ValueError: the directory contains something else, or nothing can be made of the input.
    """
    target = epath.Path(output)
    if target.name in ("", ".."):  # "." has no name for the temporary directory next to it
        target = paths.absolute(target)
    decides = dataclasses.asdict(request)
    decides["files"] = {
        name: identity(decides[name], without=output) for name in _READ if decides.get(name)
    }
    if beside := getattr(request, "beside", ()):  # suffixes of what is read next to the input
        folders = folders_of_files(request.input)
        decides["files"]["beside"] = identity(folders, suffixes=beside, without=output)
    if how.validation_share:
        decides["validation_share"] = how.validation_share
    asked = json.loads(json.dumps({"pipeline": name, "request": decides}, allow_nan=False))
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        mark = target / MARK
        found = paths.read_json(mark) if mark.exists() else {}
        if isinstance(found.get("request"), dict):
            _add_defaults(found["request"], request)
        if {key: found.get(key) for key in asked} != asked:
            what = "something else"
            if found:
                what = f"the output of another request ({_differences(found, asked)})"
            raise ValueError(f"{target} holds {what}. Remove it, or give another --output.")
        print(f"{name}: {target} is complete, nothing to do")
        return False
    start = time.monotonic()
    with _appearing(target) as whole:
        counts = PIPELINES[name].build(request, whole, how)
        (whole / MARK).write_text(
            json.dumps(asked | {"counts": counts}, indent=2, allow_nan=False) + "\n"
        )
    print(f"{name}: {target} in {time.monotonic() - start:.1f} s")
    for key, count in counts.items():
        print(f"  {key:<40}{count:>12}")
    return True


@contextlib.contextmanager
def _appearing(target: epath.Path) -> Iterator[epath.Path]:
    """Yields a directory to write to. It becomes `target` if the context ends without an error."""
    if "://" in os.fspath(target):
        yield target
        return
    with staged(target) as staging:
        whole = staging / "whole"
        whole.mkdir()
        yield whole
        if target.exists():  # it is an empty directory
            target.rmdir()
        whole.rename(target)


def _add_defaults(found: dict[str, Any], request: Any) -> None:
    """Adds fields that the output's version of a request did not have: they have their defaults.

    Args:
      found: what pipeline.json has of a request, or of a part of it; it is changed.
      request: the dataclass of the same request, or of the same part.
    """
    for field in dataclasses.fields(request):
        if dataclasses.is_dataclass(value := getattr(request, field.name)):
            if isinstance(part := found.get(field.name), dict):
                _add_defaults(part, value)
        elif field.name not in found and field.default is not dataclasses.MISSING:
            # through JSON: a tuple is a list there
            found[field.name] = json.loads(json.dumps(field.default, allow_nan=False))


def _differences(found: dict[str, Any], asked: dict[str, Any]) -> str:
    """Lists the first few fields that differ, as "request.seed: 1 there, 2 asked for"."""

    def flat(tree: Any, prefix: str) -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        leaves: dict[str, Any] = {}
        for key, value in tree.items():
            leaves |= flat(value, f"{prefix}.{key}".strip("."))
        return leaves

    old, new = flat({key: found.get(key) for key in asked}, ""), flat(asked, "")
    changed = [path for path in old | new if old.get(path) != new.get(path)]
    files = "request.files."
    return "; ".join(
        f"{path}: these files are others, or were changed since"
        if path.startswith(files)
        else f"{path}: {old.get(path)!r:.60} there, {new.get(path)!r:.60} asked for"
        for path in changed[:3]
    )


def _check_packages(name: str) -> None:
    """Raises MissingPackageError if a package that the pipeline needs is not installed."""
    for package in PIPELINES[name].packages:
        if importlib.util.find_spec(package) is None:
            raise MissingPackageError(
                f"--pipeline={name} needs the package {package!r}: pip install '{EXTRA}'",
                name=package,
            )


def _run(arguments: list[str]) -> None:
    if arguments:
        raise ValueError(
            f"Unexpected arguments {arguments}: every option has the form --name=value."
        )
    name = _PIPELINE.value
    if not name:
        raise ValueError(f"--pipeline is missing: give one of {', '.join(PIPELINES)}.")
    if name not in PIPELINES:
        close = difflib.get_close_matches(name, PIPELINES, n=1)
        suggestion = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"--pipeline={name}: expected one of {', '.join(PIPELINES)}.{suggestion}")
    if not _OUTPUT.value:
        raise ValueError("--output is missing: give the directory to make.")
    _check_packages(name)
    asked, how = _OPTIONS.read(name, flags.FLAGS)
    make(name, PIPELINES[name].request(asked), _OUTPUT.value, how)


def main(argv: list[str]) -> None:
    """Makes what the flags ask for. An error in the flags ends the program with one line."""
    logging.set_verbosity(logging.WARNING)  # TFDS logs every file
    try:
        _run(argv[1:])
    except (ValueError, MissingPackageError, WorkerDied) as error:
        sys.exit(f"data_pipelines.run: {error}")
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.errno is None:  # the message is of this package, and complete
            sys.exit(f"data_pipelines.run: {error}")
        sys.exit(
            f"data_pipelines.run: cannot make {_OUTPUT.value}: {error}. Give a writable place "
            "with room."
        )


def _program() -> None:
    def parse(argv: list[str]) -> list[str]:
        words = command_line.with_user_paths(argv)
        return command_line.parsed(words, flags.FLAGS, flags.Error)

    with command_line.ending_quietly():
        app.run(main, flags_parser=parse)


if __name__ == "__main__":
    supervised(_program)
