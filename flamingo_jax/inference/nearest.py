"""RICES, retrieval-based in-context example selection.

As supports, the examples whose images are most like the query's (paper, A.2 and B.2.1).

    images, videos --frozen vision encoder--> grid --mean--> features [n, E] --length 1--> cosine with each query --> the k nearest

The paper does not say how features are pooled and compared. Here: the mean over the places of the
encoder's last grid (of a video, over its frames too), and the cosine. The search is exact: all
supports are compared with, in chunks of queries, on the device.

Features are kept on disk by the identity of the image and of the encoder's weights, so that a
benchmark is encoded once for all shots, seeds and runs:

    DIRECTORY/ENCODER/00000/{embeddings.npy, keys.txt}, 00001/, ...      one part after the other, so that little is lost with a run that is killed
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

from flamingo_jax.core.notation import Array, Float, Int
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.data.embeddings import Embeddings, writing
from flamingo_jax.inference.vision_features import VisionEncoder
from flamingo_jax.inference.visuals import Visual, identity

PART = 4096  # images whose features are encoded and written together
_SCORES = 1 << 26  # similarities held at once


class Rices:
    """Finds the examples that are most like a query; `evaluation.few_shot` calls it."""

    def __init__(self, encoder: VisionEncoder, directory: PathLike | None = None) -> None:
        """Reads the features that there are.

        Args:
            encoder: of the model.
            directory: where features are kept; None: in memory alone.
        """
        self._encoder = encoder
        self._directory = None if directory is None else Path(directory) / encoder.fingerprint()
        self._known: dict[bytes, np.ndarray] = {}
        if self._directory is not None and jax.process_index() == 0:
            for part in self._parts():
                for keys, rows in Embeddings(part).chunks(PART):
                    self._known.update(zip(map(bytes.fromhex, keys), np.array(rows), strict=True))

    def __call__(
        self, queries: Sequence[Visual], supports: Sequence[Visual], k: int
    ) -> Int[np.ndarray, "q k"]:
        """The `k` supports that are most like each query, the most similar first.

        Of equals the first one.

        Raises:
            PromptError: an image cannot be read.
        """
        return nearest(self.features(queries), self.features(supports), k)

    def features(self, visuals: Sequence[Visual]) -> Float[np.ndarray, "n E"]:
        """Features of n >= 1 images and videos; those that are not known are encoded and kept.

        Raises:
            PromptError: an image cannot be read.
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
        """What is known of `keys`.

        The same in all processes, which then encode the same rest together.
        """
        known = {key: self._known[key] for key in keys if key in self._known}
        if jax.process_count() == 1:
            return known
        width = int(
            multihost_utils.broadcast_one_to_all(np.int32(len(next(iter(known.values()), ()))))
        )
        has = multihost_utils.broadcast_one_to_all(np.array([key in known for key in keys]))
        blank = np.zeros(width, np.float32)
        rows = multihost_utils.broadcast_one_to_all(
            np.stack([known.get(key, blank) for key in keys])
        )
        return {
            key: np.asarray(row) for key, row, there in zip(keys, rows, has, strict=True) if there
        }

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
    """The rows of `supports` with the largest cosine with each query, the largest first.

    Of equals the first row.

    Args:
        queries: features; of any length, but 0.
        supports: features.
        k: at most n.
        chunk: queries compared at once; by default as many as keep 2**26 similarities.

    Raises:
        ValueError: there are fewer than k supports.
    """
    if not 0 < k <= len(supports):
        raise ValueError(
            f"nearest: got k={k} with {len(supports)} supports, expected k from 1 to their number."
        )
    num_chunks = -(-max(len(queries), 1) // (chunk or max(1, _SCORES // len(supports))))
    # chunks of one size, so that little of the last is padding
    rows = -(-max(len(queries), 1) // num_chunks)
    placed = jnp.asarray(supports)
    scale = _scale(placed)
    found = []
    for start in range(0, len(queries), rows):
        some = queries[start : start + rows]
        padded = np.concatenate([some, np.zeros((rows - len(some), some.shape[1]), np.float32)])
        found.append(_nearest(jnp.asarray(padded), placed, scale, k)[: len(some)])  # not waited for
    return (
        np.concatenate([np.asarray(each) for each in found])
        if found
        else np.zeros((0, k), np.int32)
    )


@jax.jit
def _scale(rows: Float[Array, "n E"]) -> Float[Array, "n"]:
    """One over the length of each row; 0 for a row of zeros, which is like nothing."""
    squares = jnp.sum(jnp.square(rows), axis=1)
    return jnp.where(
        squares > 0, jax.lax.rsqrt(jnp.maximum(squares, jnp.finfo(jnp.float32).tiny)), 0.0
    )


@functools.partial(jax.jit, static_argnames=("k",))
def _nearest(
    queries: Float[Array, "q E"], supports: Float[Array, "n E"], scale: Float[Array, "n"], k: int
) -> Int[Array, "q k"]:
    # The length of the query is the same for all of its supports: it changes no order.
    return jax.lax.top_k(
        jnp.einsum("qe,ne->qn", queries, supports, precision="highest") * scale[None], k
    )[1]
