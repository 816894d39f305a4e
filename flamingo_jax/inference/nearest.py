"""RICES, retrieval-based in-context example selection (paper, A.2 and B.2.1).

The support examples of a query are those with the most similar images.

    visuals --frozen vision encoder--> grid --mean--> features [n, E]
    queries [q, E], supports [n, E] --cosine--> [q, n] --> the k nearest [q, k]

The paper does not say how features are pooled and compared. Here they are the mean over the
encoder's last grid (and over a video's frames), compared by the cosine. The search is exact: each
query is compared with all supports, on the device.

Features are stored on disk by the identities of the visual and of the encoder's weights, so that a
benchmark is encoded once for all shots, seeds and runs. They are written part by part, so that a
run that is killed loses little:

    DIRECTORY/ENCODER/00000/{embeddings.npy, keys.txt}, 00001/, ...
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import tqdm
from jax.experimental import multihost_utils

from flamingo_jax.core.finite import finite
from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.embeddings import Embeddings, writing
from flamingo_jax.inference.identity import identity
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.inference.visuals import Visual

PART = 4096  # visuals that are encoded and written together
_SCORES = 1 << 26  # similarities in memory at once


class Rices:
    """Finds the examples that are most similar to a query; `evaluation.few_shot` calls it."""

    def __init__(self, encoder: VisionEncoder, directory: PathLike | None = None) -> None:
        """Reads the features on disk.

        Args:
            encoder: of the model.
            directory: where features are stored; None = only in memory.
        """
        self._encoder = encoder
        self._directory = None if directory is None else Path(directory) / encoder.fingerprint()
        self._known: dict[bytes, np.ndarray] = {}
        if self._directory is not None and jax.process_index() == 0:
            for part in self._parts():
                for keys, rows in Embeddings(part).chunks(PART):
                    finite(rows, f"features in {part}", why=lambda: "Delete this directory.")
                    self._known.update(zip(map(bytes.fromhex, keys), np.array(rows), strict=True))

    def __call__(
        self, queries: Sequence[Visual], supports: Sequence[Visual], k: int
    ) -> Int[np.ndarray, "q k"]:
        """Returns the `k` supports that are most similar to each query, the most similar first.

        Of equally similar ones the first comes first.

        Raises:
            PromptError: an image cannot be read.
        """
        return nearest(self.features(queries), self.features(supports), k)

    def features(self, visuals: Sequence[Visual]) -> Float[np.ndarray, "n E"]:
        """Returns features of n >= 1 visuals; those that are not known are encoded and stored.

        Raises:
            PromptError: an image cannot be read.
            NonFiniteError: the encoder gave NaN or infinity.
        """
        keys = [identity(visual) for visual in visuals]
        unique = dict(zip(keys, visuals, strict=True))
        known = self._agree(list(unique))
        missing = [key for key in unique if key not in known]
        hidden = not (missing and sys.stderr.isatty() and jax.process_index() == 0)
        with tqdm.tqdm(
            total=len(missing), desc="features", unit="image", disable=hidden, leave=False
        ) as bar:
            for start in range(0, len(missing), PART):
                part = missing[start : start + PART]
                rows = self._encoder([unique[key] for key in part])
                self._keep(part, rows)
                known.update(zip(part, rows, strict=True))
                bar.update(len(part))
        return np.stack([known[key] for key in keys])

    def _agree(self, keys: Sequence[bytes]) -> dict[bytes, np.ndarray]:
        """Known features of `keys`, the same in all processes, which encode the others together."""
        known = {key: self._known[key] for key in keys if key in self._known}
        if jax.process_count() == 1:
            return known
        of_first = multihost_utils.broadcast_one_to_all
        width = int(of_first(np.int32(len(next(iter(known.values()), ())))))
        is_known = of_first(np.array([key in known for key in keys]))
        blank = np.zeros(width, np.float32)
        rows = of_first(np.stack([known.get(key, blank) for key in keys]))
        found = zip(keys, rows, is_known, strict=True)
        return {key: np.asarray(row) for key, row, known_there in found if known_there}

    def _keep(self, keys: Sequence[bytes], rows: np.ndarray) -> None:
        if jax.process_index() > 0:
            return
        self._known.update(zip(keys, rows, strict=True))
        if self._directory is not None:
            number = 1 + max((int(part.name) for part in self._parts()), default=-1)
            with writing(self._directory / f"{number:05d}", rows.shape[1]) as writer:
                writer.add([key.hex() for key in keys], rows)

    def _parts(self) -> list[Path]:
        """The parts that are complete, in order."""
        assert self._directory is not None
        there = self._directory.iterdir() if self._directory.exists() else ()
        return sorted(
            part for part in there if part.name.isdecimal() and (part / "embeddings.npy").exists()
        )


def nearest(
    queries: Float[np.ndarray, "q E"],
    supports: Float[np.ndarray, "n E"],
    k: int,
    *,
    chunk: int | None = None,
) -> Int[np.ndarray, "q k"]:
    """Returns the k rows of `supports` with the largest cosine with each query, the largest first.

    Of equal ones the first row comes first.

    Args:
        queries: features.
        supports: features; a row of zeros is similar to nothing.
        k: at most n.
        chunk: queries compared at once; None = as many as give 2**26 similarities.

    Raises:
        ValueError: there are fewer than k supports.
        NonFiniteError: a feature is NaN or infinite: it would be near to all, or to none.
    """
    finite(queries, "features of queries")
    finite(supports, "features of support examples")
    if not 0 < k <= len(supports):
        raise ValueError(
            f"nearest: got k={k} with {len(supports)} supports, expected k from 1 to their number."
        )
    num_chunks = -(-max(len(queries), 1) // (chunk or max(1, _SCORES // len(supports))))
    # Chunks of one size, so that the last one has little padding.
    rows = -(-max(len(queries), 1) // num_chunks)
    placed = jnp.asarray(supports)
    scale = _scale(placed)
    found = []
    for start in range(0, len(queries), rows):
        some = queries[start : start + rows]
        padded = np.concatenate([some, np.zeros((rows - len(some), some.shape[1]), np.float32)])
        found.append(_nearest(jnp.asarray(padded), placed, scale, k)[: len(some)])  # asynchronous
    if not found:
        return np.zeros((0, k), np.int32)
    return np.concatenate([np.asarray(each) for each in found])


@jax.jit
def _scale(rows: Float[Array, "n E"]) -> Float[Array, "n"]:
    """One over the length of each row; 0 for a row of zeros."""
    squares = jnp.sum(jnp.square(rows), axis=1)
    positive = jnp.maximum(squares, jnp.finfo(jnp.float32).tiny)
    return jnp.where(squares > 0, jax.lax.rsqrt(positive), 0.0)


@functools.partial(jax.jit, static_argnames=("k",))
def _nearest(
    queries: Float[Array, "q E"], supports: Float[Array, "n E"], scale: Float[Array, "n"], k: int
) -> Int[Array, "q k"]:
    # The query's length is left out: it is the same for all supports, and changes no order.
    products = jnp.einsum("qe,ne->qn", queries, supports, precision="highest")
    return jax.lax.top_k(products * scale[None], k)[1]
