"""Random access to stored records: a TFDS directory of ArrayRecord files, read without TensorFlow.

Source     path, split  ->  records by number
Examples   the same, prepared (tokenised once), with images that are decoded when asked for
           and all of it kept in memory while there is room: a small dataset is decoded once
"""

import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import numpy as np
from google.protobuf.message import DecodeError

from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.config import ImageFit
from flamingo_jax.data.images import read
from flamingo_jax.data.schema import CorruptRecord, Record, from_example, kind_of

T = TypeVar("T")


class Source:
    """The records of one split, by number.

    Args:
        path: directory with dataset_info.json and the ArrayRecord files. ArrayRecord reads from a
            file system only: mount a bucket with gcsfuse.
        split: its name, or a slice of it as TFDS writes it ("train[:10%]").

    Attributes:
        kind: kind of its records (a key of schema.RECORDS).

    Raises:
        FileNotFoundError: there is no dataset at `path`, or one of its files is missing.
        ValueError: there is no such split, it is empty, it is not in ArrayRecord format, or of no
            known kind.
    """

    def __init__(self, path: PathLike, split: str = "train"):
        import tensorflow_datasets as tfds

        self._where = f"{path} ({split})"
        if not (Path(path) / "dataset_info.json").exists():
            raise FileNotFoundError(
                f"There is no dataset at {path}: dataset_info.json is missing. Check the path."
            )
        builder = tfds.builder_from_directory(str(path))
        self.kind = kind_of(builder.info.features.keys())
        try:
            self._records = builder.as_data_source(split)
        except (ValueError, NotImplementedError) as error:
            splits = {name: info.num_examples for name, info in builder.info.splits.items()}
            raise ValueError(
                f"Cannot read split {split!r} of {path}: {error} It has {splits}."
            ) from error
        pieces = builder.info.splits[split].file_instructions
        self._files = [Path(piece.filename).name for piece in pieces]
        self._ends = np.cumsum([piece.examples_in_shard for piece in pieces])
        # one listing, since a bucket is slow to ask for each
        present = {file.name for file in Path(path).iterdir()}
        if missing := [name for name in self._files if name not in present]:
            raise FileNotFoundError(
                f"The dataset at {path} lacks {len(missing)} of its {len(self._files)} files, the "
                f"first of them {missing[0]}. Copy the whole directory, or write the dataset again."
            )
        if not len(self._records):
            raise ValueError(f"Split {split!r} of {path} is empty, expected at least one record.")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Raises:
            CorruptRecord: it cannot be read, or its fields make no record.
        """
        try:
            example = self._records[index]
        # What ArrayRecord raises on a bad checksum, and TFDS on an example that does not parse.
        except (
            RuntimeError,
            ValueError,
            KeyError,
            AttributeError,
            TypeError,
            DecodeError,
        ) as error:
            file = self._files[int(np.searchsorted(self._ends, index, side="right"))]
            raise CorruptRecord(
                f"Record {index} of {self._where}, in {file}, cannot be read: {error}"
            ) from error
        return from_example(self.kind, example)


class Room:
    """Bytes that may still be kept in memory; shared by threads."""

    def __init__(self, num_bytes: int):
        self._left = num_bytes
        self._lock = threading.Lock()

    def take(self, num_bytes: int) -> bool:
        """Takes `num_bytes` (negative: gives them back), if there is as much room.

        Says whether there was.
        """
        with self._lock:
            fits = num_bytes <= self._left
            self._left -= num_bytes if fits else 0
            return fits


class EncodedImages:
    """The images of one record: decoded when asked for, and kept so while there is room.

    Only what is asked for is decoded, be there room or not: whether a record counts as corrupt must
    not depend on the size of the memory.
    """

    def __init__(self, encoded: Sequence[bytes], size: int, image_fit: ImageFit = "pad"):
        self._images: list[bytes | np.ndarray] = list(encoded)
        self._size, self._image_fit = size, image_fit
        self._room: Room | None = None

    def __len__(self) -> int:
        return len(self._images)

    @property
    def num_bytes(self) -> int:
        """Bytes held now."""
        return sum(
            len(image) if isinstance(image, bytes) else image.nbytes for image in self._images
        )

    def keep_in(self, room: Room) -> None:
        """From now on keeps what is decoded, while there is room."""
        self._room = room

    def __getitem__(self, index: int) -> np.ndarray:
        """Returns one image, uint8[h, w, 3] with the longer side of `size` pixels.

        Not to be written to.

        Raises:
            CorruptRecord: it cannot be decoded.
        """
        image = self._images[index]
        if isinstance(image, np.ndarray):
            return image
        decoded = read.decode_inner(image, self._size, self._image_fit)
        if self._room and self._room.take(decoded.nbytes - len(image)):
            self._images[index] = decoded
        return decoded


class Examples(Generic[T]):
    """Records prepared by a function, and kept in memory while there is room.

    Args:
        source: the records.
        prepare: what to make of a record, once; pure. Its result tells its size by `num_bytes`, and
            gets `keep_in(room)` if it is kept.
        cache_bytes: about how much memory all that is kept may take. Nothing is ever dropped for
            something else.
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
