"""Defines in which dtype the model computes, and casts weights to it.

The policy is Chinchilla's mixed precision (paper, B.1.2). Trainable weights and their moments are
float32. Computation, activations and gradients have the policy's dtype. Frozen weights are stored
and applied in it; or, as `Int8Weight`, they are stored in 8 bits. Statistics of norms, softmax,
logits and loss are always float32 (see nn/).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

LARGEST = 127  # of the integers -127..127


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Int8Weight:
    """A frozen weight in 8 bits: w = values * scale, with one scale for each output channel.

    In a tree of weights it is one leaf, with the shape and the dtype of the weight that it is for.
    `nn.linear.product` multiplies by it.

    Attributes:
        values: int8, of the shape of w, in -127..127.
        scale: float32, of the shape of w with 1 in place of each axis that the product contracts.
        dtype: in which the products are computed.
    """

    values: Any
    scale: Any
    dtype: Any = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        """Of w."""
        return tuple(self.values.shape)

    @property
    def ndim(self) -> int:
        """The number of dimensions of w."""
        return len(self.shape)

    @classmethod
    def of(cls, w: jax.Array, contracted: tuple[int, ...]) -> Int8Weight:
        """Rounds a weight: |w - values * scale| is at most scale / 2.

        The scale of an output channel is its largest |w| / 127, or 1 if all its weights are 0.

        Args:
            w: the weight.
            contracted: the axes that its product contracts.
        """
        w32 = w.astype(jnp.float32)
        scale = jnp.max(jnp.abs(w32), axis=contracted, keepdims=True) / LARGEST
        # NaN and infinity stay in the scale, where they are found.
        scale = jnp.where(scale == 0, jnp.ones_like(scale), scale)
        rounded = jnp.clip(jnp.round(w32 / scale), -LARGEST, LARGEST)
        return cls(rounded.astype(jnp.int8), scale, jnp.dtype(w.dtype))

    def to_float(self) -> jax.Array:
        """Returns values * scale in float32; no program of a model does this."""
        return jnp.asarray(self.values, jnp.float32) * self.scale


def is_int8(leaf: Any) -> bool:
    """Returns True for an `Int8Weight`, as `is_leaf` of jax.tree.map."""
    return isinstance(leaf, Int8Weight)


@dataclasses.dataclass(frozen=True)
class Policy:
    """The dtype in which the towers compute, and how frozen weights are stored.

    Attributes:
        compute: dtype of the computation.
        frozen: "compute": frozen weights are in this dtype. "int8": those of the frozen towers'
            products are in 8 bits (`Int8Weight`), and the others in this dtype. This halves the
            memory of bfloat16 weights. It is not in the paper.
    """

    compute: Literal["bfloat16", "float32"] = "bfloat16"
    frozen: Literal["compute", "int8"] = "compute"

    @property
    def dtype(self) -> Any:
        """The dtype, not its name."""
        return jnp.dtype(self.compute)

    def cast(self, tree: Any) -> Any:
        """Returns the tree with its floating-point leaves in the compute dtype.

        An `Int8Weight` stays as it is, and its products are computed in this dtype.
        """

        def cast(leaf: Any) -> Any:
            if isinstance(leaf, Int8Weight):
                return dataclasses.replace(leaf, dtype=self.dtype)
            is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(self.dtype) if is_float else leaf

        return jax.tree.map(cast, tree, is_leaf=is_int8)


def dtype_of(params: Any) -> Any:
    """Returns the dtype of cast weights: the dtype of the first, since `Policy.cast` changes all.

    Images and caches have it too.
    """
    return jax.tree.leaves(params, is_leaf=is_int8)[0].dtype


def arrays_of(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns weights by path, as arrays: an `Int8Weight` is PATH/int8 and PATH/scale."""
    arrays: dict[str, Any] = {}
    for path, leaf in flat.items():
        if isinstance(leaf, Int8Weight):
            arrays |= {f"{path}/int8": leaf.values, f"{path}/scale": leaf.scale}
        else:
            arrays[path] = leaf
    return arrays


def joined(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverse of `arrays_of`; the weights are for products in float32 until they are cast."""
    found: dict[str, Any] = {}
    for path, leaf in flat.items():
        weight, _, part = path.rpartition("/")
        if part == "int8":
            found[weight] = Int8Weight(leaf, flat[f"{weight}/scale"], jnp.dtype(jnp.float32))
        elif part != "scale" or f"{weight}/int8" not in flat:
            found[path] = leaf
    return found
