r"""Converts instruction data to records of conversations.

    --format=llava     JSON lists or JSON lines of conversations, as LLaVA publishes them
    --format=mimic_it  MIMIC-IT's *_instructions.json, with images in base64 in other .json files

    python -m data_pipelines.run --pipeline=instruct --input=llava_v1_5_mix665k.json \
        --images=/data/images --output=DIR
    python -m data_pipelines.run --pipeline=instruct --format=mimic_it \
        --input=LA/LACR_T2T_instructions.json --images=LA/LA.json --output=DIR

`--config.data.datasets.NAME.kind=conversations` trains on them (configs/instruct.py). A
conversation that lacks an image is left out, and counted by its reason.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator

from etils import epath

from data_pipelines.collect import Found, collect
from data_pipelines.deadline import SECONDS, check_seconds, each_in_time
from data_pipelines.formats import json_list, jsonl
from data_pipelines.formats.json_texts import object_of
from data_pipelines.inputs import input_files
from data_pipelines.instruct import llava, mimic_it
from data_pipelines.on_beam import Execution
from data_pipelines.page import Reject
from flamingo_jax.data.conversations import Conversation
from flamingo_jax.data.files import IMAGE_SUFFIXES, has_suffix

FORMATS = ("llava", "mimic_it")

_PART = 1 << 22  # bytes of JSON lines for one worker and one shard: some 3,000 conversations
_PART_OF_IDS = 2000  # instructions of MIMIC-IT for one worker and one shard

Unit = str | jsonl.Lines | mimic_it.Ids


@dataclasses.dataclass(frozen=True)
class InstructRequest:
    """The options that decide the conversations.

    Attributes:
      input: files, directories or patterns, separated by commas: .json and .jsonl (.gz, .zst) of
        LLaVA, or *_instructions.json of MIMIC-IT.
      format: llava | mimic_it.
      images: llava: folder that the paths of the images are relative to; "": the folder of the
        input file. mimic_it: the .json files with the images, separated by commas.
      related: mimic_it: largest number of related instructions that come before one, in context.
      images_per_turn: mimic_it: of more images, such as the frames of a video, so many are taken,
        evenly spaced.
      max_images: a conversation with more images is left out.
      max_characters: a conversation with a longer text in one of its turns is left out.
      max_record_seconds: largest CPU time of a conversation; one that takes more is counted as
        too_slow.
    """

    input: str = ""
    format: str = "llava"
    images: str = ""
    related: int = 3
    images_per_turn: int = 8
    max_images: int = 32
    max_characters: int = 16_000
    max_record_seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise ValueError(
                f"instruct: got --format={self.format!r}, expected one of {', '.join(FORMATS)}."
            )
        if self.format == "mimic_it" and not self.images:
            raise ValueError(
                "instruct: --images is missing: with --format=mimic_it give the .json files of the "
                "images, such as --images=LA/LA.json."
            )
        if self.related < 0:
            raise ValueError(f"instruct: got --related={self.related}, expected 0 or more.")
        for name in ("images_per_turn", "max_images", "max_characters"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"instruct: got --{name}={getattr(self, name)}, expected 1 or more."
                )
        check_seconds("instruct", self.max_record_seconds)

    @property
    def beside(self) -> tuple[str, ...]:
        """Suffixes of files that are read from the folder of the input."""
        return IMAGE_SUFFIXES if self.format == "llava" and not self.images else ()


def build(request: InstructRequest, output: epath.Path, how: Execution) -> dict[str, int]:
    """Writes the conversations as a dataset.

    Returns:
      The counts of what was read, written and left out.

    Raises:
      ValueError: there is no input, or too much of it is damaged.
    """
    units: list[Unit] = []
    if request.format == "mimic_it":
        files = input_files(request.input, ("_instructions.json",), json_list.SUFFIXES)
        for path in files:
            units += _ids(path)
    else:
        files = input_files(request.input, json_list.SUFFIXES + jsonl.SUFFIXES, IMAGE_SUFFIXES)
        for path in files:
            is_list = has_suffix(path, json_list.SUFFIXES)
            units += [path] if is_list else jsonl.parts(path, _PART)
    read = functools.partial(read_unit, request)
    return collect(
        units, read, Conversation.kind, output, how, passed_over=files.passed_over
    ).table()


def _ids(path: str) -> list[Unit]:
    found = object_of(path)
    data = found.get("data") if isinstance(found, dict) else None
    number = len(data) if isinstance(data, dict) else 0
    starts = range(0, max(number, 1), _PART_OF_IDS)  # a file without any is counted by its worker
    return [mimic_it.Ids(path, start, start + _PART_OF_IDS) for start in starts]


def read_unit(request: InstructRequest, unit: Unit) -> Iterator[Found | Reject]:
    """Yields the conversations of one unit, and a Reject for each that is left out.

    Args:
      request: what to keep, and where the images are.
      unit: a JSON list, a part of a file of JSON lines, or some instructions of MIMIC-IT.
    """
    if isinstance(unit, mimic_it.Ids):
        files = tuple(input_files(request.images, json_list.SUFFIXES))
        yield from mimic_it.read(
            unit,
            files,
            related=request.related,
            images_per_turn=request.images_per_turn,
            max_images=request.max_images,
            max_characters=request.max_characters,
            seconds=request.max_record_seconds,
        )
        return
    path = unit if isinstance(unit, str) else unit.path
    folder = epath.Path(request.images) if request.images else epath.Path(path).parent
    rows = json_list.rows(unit) if isinstance(unit, str) else jsonl.rows(unit)
    yield from each_in_time(
        rows,
        lambda row: [
            llava.conversation(
                row,
                folder,
                max_images=request.max_images,
                max_characters=request.max_characters,
            )
        ],
        seconds=request.max_record_seconds,
        place=path,
    )
