r"""Reads a benchmark's official files from its directory.

A file that is missing, or is another file than expected, is one error that says where to get it.

    files = Files(directory, "vizwiz", download="vizwiz.org, ...", layout="val.json\nval/\n  ...")
    records(files.json("val.json"), {"image": str, "question": str}, files.path("val.json"))

The user names each directory (`config.data.NAME=DIR`). Its files are those that the benchmark's
makers publish: they are not renamed or converted first.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import io
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from flamingo_jax.core.paths import Path, PathError, PathLike, parse_json, read_json, regular
from flamingo_jax.evaluation.task import TaskError

Types = type | tuple[type, ...]
FileSplit = Literal["train", "test"]
_LARGEST_FIELD = 1 << 28  # MMBench has its pictures in base64
OWN_SPLITS: Mapping[FileSplit, tuple[str, ...]] = {"train": ("train",), "test": ("test",)}


class AnnotationError(TaskError):
    """A file of a benchmark is missing, cannot be read, or is another file than expected."""


@dataclasses.dataclass(frozen=True)
class Files:
    """The directory of one benchmark.

    Attributes:
        directory: the directory.
        benchmark: name of the benchmark, as in `config.data.NAME`.
        download: official site of the files, in a few words.
        layout: expected content of the directory: a line per file, indented by two spaces per
            folder.
        annotations: possible places of each split's annotation file, the official one first.
        folders: possible folders of the images or videos, the official one first.
        splits: names of each split in the official files.
        left_out: number of annotated items that are left out, by reason; readers count them.
    """

    directory: PathLike
    benchmark: str
    download: str
    layout: str
    annotations: Mapping[FileSplit, Sequence[str]] = dataclasses.field(default_factory=dict)
    folders: Sequence[str] = ()
    splits: Mapping[FileSplit, Sequence[str]] = dataclasses.field(
        default_factory=lambda: OWN_SPLITS
    )
    left_out: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def path(self, *names: str) -> Path:
        """Returns the first of several possible files or folders that exists.

        Args:
            *names: relative to the directory, the official place first.

        Raises:
            AnnotationError: no file exists; the message says where to get it, and the layout.
        """
        for name in names:
            if (found := Path(self.directory) / name).exists():
                return found
        raise self.missing(names[0])

    def folder(self, *folders: str, of: str) -> Path:
        """Returns the first of several possible folders that has a given file.

        Args:
            *folders: relative to the directory, the official place first; "" is the directory
                itself.
            of: the file, relative to the folder, such as the first image of the annotations.

        Raises:
            AnnotationError: no folder has the file; the message names it.
        """
        found = self.path(*(f"{folder}/{of}" if folder else of for folder in folders))
        for _ in range(of.count("/") + 1):
            found = found.parent
        return found

    def annotation_path(self, split: FileSplit) -> Path:
        """Returns the annotation file of a split.

        Raises:
            AnnotationError: the file is missing.
        """
        return self.path(*self.annotations[split])

    def records(self, split: FileSplit, fields: Mapping[str, Types]) -> list[dict[str, Any]]:
        """Reads the annotation file of a split, a JSON list of objects; see `records`.

        Raises:
            AnnotationError: the file is missing, or is not a list of objects with these fields.
        """
        return records(self.json(*self.annotations[split]), fields, self.annotation_path(split))

    def rows(self, split: FileSplit, columns: Sequence[str]) -> list[dict[str, str]]:
        """Reads the annotation file of a split, a table; see `csv`.

        Raises:
            AnnotationError: the file is missing, or lacks a column.
        """
        return self.csv(*self.annotations[split], columns=columns)

    def has(self, *names: str) -> bool:
        """Returns True if one of several possible files or folders exists."""
        return any((Path(self.directory) / name).exists() for name in names)

    def missing(self, name: str) -> AnnotationError:
        """Returns the error for a file that does not exist."""
        tree = "\n".join(
            f"    {line}" for line in textwrap.dedent(self.layout).strip().splitlines()
        )
        return AnnotationError(
            f"the benchmark {self.benchmark!r} needs {Path(self.directory) / name}, and it is not "
            f"there. Get it from {self.download}. Expected in the directory of {self.benchmark}, "
            f"{self.directory}:\n"
            f"{tree}"
        )

    def text(self, *names: str) -> str:
        """Reads a text file, without its byte order mark.

        Raises:
            AnnotationError: the file is missing, or is not UTF-8.
        """
        path = self.path(*names)
        try:
            return regular(path).read_text(encoding="utf-8").removeprefix("\ufeff")
        except (OSError, UnicodeDecodeError) as error:
            raise AnnotationError(
                f"the benchmark {self.benchmark!r} cannot read {path}: {error}. Expected a text "
                f"file in UTF-8; get it from {self.download}."
            ) from error

    def json(self, *names: str, unique_names: bool = False) -> Any:
        """Reads a JSON file.

        Args:
            *names: possible places of the file, see `path`.
            unique_names: whether to check that no object has a name twice: of two, Python keeps the
                last. For files that name their items in this way.

        Raises:
            AnnotationError: the file is missing, or is not JSON, or has a name twice.
        """
        path = self.path(*names)

        def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            self.check_ids(path, (name for name, _ in pairs))
            return dict(pairs)

        try:
            if unique_names:
                return parse_json(self.text(*names), make_object=unique)
            return read_json(path)
        except AnnotationError:
            raise
        except ValueError as error:
            raise AnnotationError(
                f"the benchmark {self.benchmark!r}: {path} is not valid JSON: {error}. It is cut "
                f"off or damaged: get it again from {self.download}."
            ) from error
        except PathError as error:
            raise AnnotationError(
                f"the benchmark {self.benchmark!r}: {error} The official file is at "
                f"{self.download}."
            ) from error

    def json_lines(self, *names: str) -> list[Any]:
        """Reads a file with one JSON value per line; skips empty lines.

        Raises:
            AnnotationError: the file is missing, or a line is not JSON.
        """
        values = []
        for number, line in enumerate(self.text(*names).split("\n"), 1):
            if not line.strip():
                continue
            try:
                values.append(parse_json(line))
            except ValueError as error:
                raise AnnotationError(
                    f"the benchmark {self.benchmark!r}: line {number} of {self.path(*names)} is "
                    f"not JSON ({error}). It is cut off or damaged: get it again from "
                    f"{self.download}."
                ) from error
        return values

    def csv(
        self, *names: str, columns: Sequence[str], strict: bool = True, delimiter: str = ","
    ) -> list[dict[str, str]]:
        """Reads a CSV file with a header; each row is a dict of strings.

        Args:
            *names: possible places of the file, see `path`.
            delimiter: between two fields; a tab for TSV.
            columns: required columns; the header may have more.
            strict: whether a quote that is not closed, or that more text follows, is an error: it
                makes many rows one.

        Raises:
            AnnotationError: the file is missing, lacks a column or has it twice, or has a row with
                more fields than the header, or without a required one.
        """
        path = self.path(*names)
        text = io.StringIO(self.text(*names), newline="")
        reader = csv.DictReader(text, strict=strict, delimiter=delimiter)
        header = reader.fieldnames or ()
        if twice := [name for name in columns if list(header).count(name) > 1]:
            raise self.wrong(path, f"the column {twice[0]} twice", "each column once")
        if lacking := [name for name in columns if name not in header]:
            raise AnnotationError(
                f"the benchmark {self.benchmark!r}: {path} lacks the columns {', '.join(lacking)}; "
                f"got the header {','.join(header)!r}. Get the official file from {self.download}."
            )
        limit = csv.field_size_limit(_LARGEST_FIELD)  # of the whole process
        try:
            rows = list(reader)
        except csv.Error as error:
            raise self.wrong(
                path, f"no CSV in line {reader.line_num} ({error})", f"rows of {len(header)} fields"
            ) from error
        finally:
            csv.field_size_limit(limit)
        for number, row in enumerate(rows):
            if None in row or any(row[name] is None for name in columns):
                much = "many" if None in row else "few"
                raise self.wrong(
                    path, f"a row {number} of too {much} fields", f"rows of {len(header)} fields"
                )
        return [{name: value or "" for name, value in row.items()} for row in rows]

    def check_ids(self, path: PathLike, ids: Iterable[Any]) -> None:
        """Checks that an annotation file has each id once.

        Answers are kept by id, and supports are told from queries by id. Of two items with one id,
        one would be lost.

        Args:
            path: the file.
            ids: the ids that it has.

        Raises:
            AnnotationError: an id occurs twice; the message names it.
        """
        counts = collections.Counter(ids)
        if repeated := {id: count for id, count in counts.items() if count > 1}:
            first, times = next(iter(repeated.items()))
            others = f", and {len(repeated) - 1} other ids too" if len(repeated) > 1 else ""
            raise self.wrong(path, f"the id {first!r} {times} times{others}", "each id once")

    def wrong(self, path: PathLike, got: str, expected: str) -> AnnotationError:
        """Returns the error for a file with other content than expected, such as another split."""
        return AnnotationError(
            f"the benchmark {self.benchmark!r}: {path} holds {got}, expected {expected}. "
            f"Put the official file of that name there (from {self.download})."
        )


def records(value: object, fields: Mapping[str, Types], where: PathLike) -> list[dict[str, Any]]:
    """Checks that a JSON value is a list of objects with the required fields, and returns it.

    Args:
        value: the list.
        fields: required field -> type, or types; the objects may have more fields.
        where: the file, for the message.

    Raises:
        AnnotationError: the value is no list, the list is empty, or an object lacks a field or has
            one of another type.
    """
    if not isinstance(value, list) or not value:
        got = f"{type(value).__name__}" if not isinstance(value, list) else "an empty one"
        raise AnnotationError(
            f"{where}: expected a list of records, got {got}. It is not the official file."
        )
    for number, record in enumerate(value):
        if not isinstance(record, dict):
            raise AnnotationError(
                f"{where}: record {number} is {type(record).__name__}, expected an object with "
                f"{', '.join(fields)}. It is not the official file."
            )
        for name, types in fields.items():
            if name not in record or not isinstance(record[name], types):
                got = (
                    f"{record[name]!r:.60}"
                    if name in record
                    else f"only {', '.join(record) or 'nothing'}"
                )
                wanted = " or ".join(
                    each.__name__ for each in (types if isinstance(types, tuple) else (types,))
                )
                raise AnnotationError(
                    f"{where}: record {number} should have {name!r} ({wanted}), got {got}. It is "
                    "not the official file, or of another split."
                )
    return value


def one_line(text: str) -> str:
    """Replaces any white space by single spaces, for prompts."""
    return " ".join(text.split())


def most_common(answers: Sequence[str]) -> str:
    """Returns the answer that most annotators gave, which support examples show.

    Of equally frequent answers, the first; "" without answers.
    """
    return collections.Counter(answers).most_common(1)[0][0] if answers else ""
