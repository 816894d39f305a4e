"""Saves and reads image embeddings, for deduplication and for retrieval of similar examples.

    DIRECTORY/embeddings.npy   float32[n, E]
    DIRECTORY/keys.txt         n lines, the image of each row: "RECORD/IMAGE HASH" for image IMAGE
                               of record RECORD of a dataset; the hash of its bytes says later
                               whether the dataset was replaced

Both files are written and read in parts, so that memory does not grow with n.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterator, Sequence
from typing import BinaryIO, TextIO

import numpy as np
from jaxtyping import Float

from flamingo_jax.core.paths import Path, PathLike, regular, written_locally

# Bytes of the hash in a key.
_HASH = 8

ARRAY, KEYS = "embeddings.npy", "keys.txt"


def record_key(record: int, image: int, encoded: bytes) -> str:
    """Returns the key of an image of a dataset."""
    return f"{record}/{image} {hashlib.blake2b(encoded, digest_size=_HASH).hexdigest()}"


class EmbeddingWriter:
    """Writes rows one after the other; made by `writing`.

    Attributes:
        num_rows: rows written so far.
    """

    def __init__(self, array: BinaryIO, keys: TextIO, width: int):
        self._array, self._keys, self._width = array, keys, width
        self.num_rows = 0
        self._write_header()

    def add(self, keys: Sequence[str], rows: Float[np.ndarray, "n E"]) -> None:
        """Writes some rows and their keys.

        Raises:
            ValueError: the number of keys and rows differs, the rows have another width or numbers
                that are not finite, or a key contains a line break.
        """
        if rows.shape != (len(keys), self._width):
            raise ValueError(
                f"{len(keys)} keys with rows of shape {rows.shape}, expected "
                f"{(len(keys), self._width)}."
            )
        if not np.isfinite(rows).all():
            raise ValueError(
                f"The rows from {keys[0]!r} to {keys[-1]!r} hold numbers that are not finite."
            )
        for key in keys:
            if key.splitlines() != [key]:
                raise ValueError(
                    f"The key {key!r} is not one line of text: rows are named by lines."
                )
        self._array.write(np.ascontiguousarray(rows, np.float32).tobytes())
        self._keys.writelines(f"{key}\n" for key in keys)
        self.num_rows += len(keys)

    def close(self) -> None:
        """Writes the number of rows into the header."""
        self._write_header()

    def _write_header(self) -> None:
        shape = (self.num_rows, self._width)
        self._array.seek(0)
        # The header has room for a number of rows that is known only at the end.
        np.lib.format.write_array_header_1_0(
            self._array, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )


@contextlib.contextmanager
def writing(directory: PathLike, width: int) -> Iterator[EmbeddingWriter]:
    """Writes embeddings. Both files appear in `directory` when the context ends without an error.

    Args:
        directory: is made if it does not exist. For an object store the files are written locally
            and copied.
        width: E.
    """
    target = Path(directory)
    with (
        # The context of the array ends last: if the array exists, its keys exist too.
        written_locally(target / ARRAY) as array_file,
        written_locally(target / KEYS) as keys_file,
        array_file.open("wb") as array,
        keys_file.open("w", encoding="utf-8") as keys,
    ):
        writer = EmbeddingWriter(array, keys, width)
        yield writer
        writer.close()


class Embeddings:
    """Saved embeddings, mapped into memory.

    Args:
        directory: contains the two files, on a file system (mount a bucket with gcsfuse).

    Attributes:
        rows: float32[n, E], read from the file on access; read-only.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the array is damaged, or not float32[n, E].
    """

    def __init__(self, directory: PathLike):
        self._directory = Path(directory)
        file = self._directory / ARRAY
        if not file.exists() or not (self._directory / KEYS).exists():
            raise FileNotFoundError(
                f"There are no embeddings in {directory}: {ARRAY} or {KEYS} is missing. Make them "
                "with python -m flamingo_jax.evaluate --task=embed."
            )
        try:
            self.rows = np.load(os.fspath(regular(file)), mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise ValueError(
                f"{file} cannot be read: {error}. It is cut off or damaged: write it again."
            ) from error
        if self.rows.ndim != 2 or self.rows.dtype != np.float32:
            raise ValueError(
                f"{file} is {self.rows.dtype}{list(self.rows.shape)}, expected float32[n, E]."
            )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def width(self) -> int:
        """E."""
        return self.rows.shape[1]

    def chunks(self, size: int) -> Iterator[tuple[list[str], np.ndarray]]:
        """Yields keys and rows in order, `size` of them at a time; the last part may be smaller.

        Raises:
            ValueError: the number of keys and rows differs.
        """
        with regular(self._directory / KEYS).open("r", encoding="utf-8") as lines:
            for start in range(0, len(self), size):
                rows = np.asarray(self.rows[start : start + size])
                keys = [line.rstrip("\n") for _, line in zip(rows, lines, strict=False)]
                if len(keys) < len(rows):
                    raise ValueError(
                        f"{self._directory / KEYS} has {start + len(keys)} lines, "
                        f"expected {len(self)}."
                    )
                yield keys, rows
            if next(lines, None) is not None:
                raise ValueError(
                    f"{self._directory / KEYS} has more than {len(self)} lines, one for each row."
                )
