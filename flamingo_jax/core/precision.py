"""Defines in which dtype the model computes, and casts weights to it.

The policy is Chinchilla's mixed precision (paper, B.1.2). Trainable weights and their moments are
float32. Computation, activations and gradients have the policy's dtype. Frozen weights are stored
and applied in it. Statistics of norms, softmax, logits and loss are always float32 (see nn/).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Policy:
    """The dtype in which the towers compute."""

    compute: Literal["bfloat16", "float32"] = "bfloat16"

    @property
    def dtype(self) -> Any:
        """The dtype, not its name."""
        return jnp.dtype(self.compute)

    def cast(self, tree: Any) -> Any:
        """Returns the tree with its floating-point leaves in the compute dtype."""

        def cast(leaf: Any) -> Any:
            is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(self.dtype) if is_float else leaf

        return jax.tree.map(cast, tree)


def dtype_of(params: Any) -> Any:
    """Returns the dtype of cast weights: the dtype of the first, since `Policy.cast` changes all.

    Images and caches have it too.
    """
    return jax.tree.leaves(params)[0].dtype
