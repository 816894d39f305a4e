"""Reads the stored records of a dataset in any order, without TensorFlow.

A dataset is a TFDS directory of ArrayRecord files.

    Source          path, split -> records by number
    Examples        records, prepared (tokenised) and kept in memory while there is room
    EncodedImages   the images of one record, decoded on access and kept while there is room

So a small dataset is read, tokenised and decoded only once.
"""

import contextlib
import resource
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy as np
from google.protobuf.json_format import ParseError
from google.protobuf.message import DecodeError

from flamingo_jax.core.config import ConfigError
from flamingo_jax.core.paths import Path, PathError, PathLike
from flamingo_jax.data import fingerprints
from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.data.files import listed, refuse_pipes
from flamingo_jax.data.fingerprints import Piece
from flamingo_jax.data.images import read, tiles
from flamingo_jax.data.rejected import BrokenDataset
from flamingo_jax.data.schema import CorruptRecord, Record, from_example, kind_of

# RecursionError: thousands of brackets
_METADATA_ERRORS = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
# ArrayRecord raises RuntimeError on a bad checksum; TFDS raises the others on an example that does
# not parse.
_READING_ERRORS = (RuntimeError, ValueError, KeyError, AttributeError, TypeError, DecodeError)

_MOST_SHOWN = 32  # records in a message
_OTHER_FILES = 1024  # of other datasets, logs, checkpoints and compiled programs

T = TypeVar("T")


class Source:
    """The records of one split, by number.

    Args:
        path: directory with dataset_info.json and the ArrayRecord files. ArrayRecord reads only
            from a file system: mount a bucket with gcsfuse.
        split: name of the split, or a slice in the notation of TFDS ("train[:10%]").

    Attributes:
        kind: kind of the records, a key of schema.RECORDS.

    Raises:
        FileNotFoundError: there is no dataset at `path`, or one of its files is missing.
        ConfigError: the split does not exist, is empty, or is not in ArrayRecord format.
        BrokenDataset: its metadata are damaged, or its records have an unknown kind.
        PathError: a pipe is in the place of one of its files.
    """

    def __init__(self, path: PathLike, split: str = "train"):
        import tensorflow_datasets as tfds

        self._where = f"{path} ({split})"
        if not (Path(path) / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"There is no dataset at {path}: dataset_info.json is missing. Check the path."
            )
        refuse_pipes(path)
        try:
            builder = tfds.builder_from_directory(str(path))
            self.kind = kind_of(builder.info.features.keys())
        except (*_METADATA_ERRORS, ParseError, OSError) as error:
            raise BrokenDataset(
                f"The dataset at {path} cannot be read: {error} Copy the whole directory, or write "
                "the dataset again."
            ) from error
        try:
            pieces = builder.info.splits[split].file_instructions
            if builder.info.splits[split].num_examples < 1:
                raise ValueError("it has no records.")
            self._records = builder.as_data_source(split)
        except (ValueError, KeyError, AssertionError, NotImplementedError) as error:
            splits = {name: info.num_examples for name, info in builder.info.splits.items()}
            why = " ".join(str(error).split()).removesuffix(".")  # in one line
            raise ConfigError(
                f"Cannot read split {split!r} of {path}: {why}. The dataset has {splits}."
            ) from error
        self._path = path
        self._files = [Path(piece.filename).name for piece in pieces]
        self._pieces = [
            Piece(name, piece.skip, piece.take)
            for name, piece in zip(self._files, pieces, strict=True)
        ]
        self._ends = np.cumsum([shard.count for shard in self._pieces])
        # One listing, because asking a bucket for each file is slow.
        present = {file.name for file, is_directory in listed(path) if not is_directory}
        if missing := [name for name in self._files if name not in present]:
            raise FileNotFoundError(
                f"The dataset at {path} lacks {len(missing)} of its {len(self._files)} files, the "
                f"first of them {missing[0]}. Copy the whole directory, or write the dataset again."
            )
        _allow_open_files(len(self._files))

    def __len__(self) -> int:
        return len(self._records)

    def fingerprint(self) -> dict[str, Any]:
        """Returns what `fingerprints.of_dataset` finds in the files of the split.

        Raises:
            PathError: a file cannot be read.
        """
        return fingerprints.of_dataset(self._path, self._pieces)

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
            CorruptRecord: the record cannot be read, or its fields are not those of its kind.
            PathError: the file cannot be opened, so nothing is known about the record.
        """
        try:
            example = self._records[index]
        except _READING_ERRORS as error:
            file = self._file(index)
            if "open() failed" in str(error):
                raise PathError(
                    f"Cannot open {file} of {self._where}: {error}. Check its permissions, the "
                    f"disk, and the limit of open files (ulimit -n), of which this dataset needs "
                    f"{len(self._files)}."
                ) from error
            raise CorruptRecord(
                f"Record {index} of {self._where}, in {file}, cannot be read: {error}"
            ) from error
        return from_example(self.kind, example)

    def places(self, indices: Sequence[int]) -> str:
        """Returns where some records are, in words: "records 3, 17 of DIR (train), in FILE"."""
        shown = list(dict.fromkeys(int(index) for index in indices))
        more = f" and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else ""
        files = dict.fromkeys(self._file(index) for index in shown[:_MOST_SHOWN])
        numbers = ", ".join(str(index) for index in shown[:_MOST_SHOWN])
        return f"records {numbers}{more} of {self._where}, in {', '.join(files)}"

    def _file(self, index: int) -> str:
        return self._files[int(np.searchsorted(self._ends, index, side="right"))]


def _allow_open_files(number: int) -> None:
    """Raises the limit of this process, so that all files of a dataset can be open, if it may.

    ArrayRecord keeps a file open from its first record on. A common limit is 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = number + _OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with contextlib.suppress(ValueError, OSError):  # macOS has a lower limit than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


class Room:
    """A budget of memory in bytes, shared by threads."""

    def __init__(self, num_bytes: int):
        self._left = num_bytes
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> bool:
        """Takes `num_bytes` from the budget if enough is left, and returns whether it was.

        A negative number gives bytes back.
        """
        with self._lock:
            fits = num_bytes <= self._left
            self._left -= num_bytes if fits else 0
            return fits


class EncodedImages:
    """The images of one record, decoded on access and kept decoded while there is room.

    An image is decoded only on access, also if there is room for all of them: whether a record
    counts as corrupt must not depend on the size of the memory.
    """

    def __init__(
        self,
        encoded: Sequence[bytes],
        size: int,
        image_fit: ImageFit = "pad",
        background: Background = "mean",
        max_tiles: int = 0,
    ):
        self._images: list[bytes | np.ndarray] = list(encoded)
        self._size, self._image_fit, self._background = size, image_fit, background
        self._max_tiles = max_tiles
        self._room: Room | None = None

    def __len__(self) -> int:
        return len(self._images)

    @property
    def num_bytes(self) -> int:
        """Bytes that the images take now, encoded or decoded."""
        return sum(
            len(image) if isinstance(image, bytes) else image.nbytes for image in self._images
        )

    def keep_in(self, room: Room) -> None:
        """Keeps decoded images from now on, while there is room."""
        self._room = room

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image, uint8[h, w, 3], read-only.

        Its longer side has `size` pixels; or it is the canvas of tiles of this side.

        Raises:
            CorruptRecord: the image cannot be decoded.
        """
        image = self._images[index]
        if isinstance(image, np.ndarray):
            return image
        if self._max_tiles:
            decoded = tiles.decode(image, self._size, self._max_tiles, self._background)
        else:
            decoded = read.decode_inner(image, self._size, self._image_fit, self._background)
        if self._room and self._room.take(decoded.nbytes - len(image)):
            self._images[index] = decoded
        return decoded


class Examples(Generic[T]):
    """Records prepared by a function, and kept in memory while there is room.

    Args:
        source: the records.
        prepare: makes an example of a record; a pure function. The example has `num_bytes`, its
            size, and `keep_in(room)`, which is called if the example is kept.
        cache_bytes: memory that all kept examples may take, roughly. A kept example stays in
            memory; it is never replaced.
    """

    def __init__(self, source: Source, prepare: Callable[[Record], T], cache_bytes: int):
        self._source, self._prepare = source, prepare
        self._room = Room(cache_bytes)
        self._kept: dict[int, T] = {}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> T:
        """Returns one prepared example.

        Raises:
            CorruptRecord: the record cannot be read or prepared.
        """
        if (example := self._kept.get(index)) is not None:
            return example
        example = self._prepare(self._source[index])
        if self._room.take(example.num_bytes):  # type: ignore[attr-defined]
            example.keep_in(self._room)  # type: ignore[attr-defined]
            self._kept[index] = example
        return example
