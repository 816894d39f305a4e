"""The named boundary at which weights change their dtype.

The policy is Chinchilla's mixed precision (paper, B.1.2).

Trainable weights and their moments are float32; compute, activations and gradients have the
policy's dtype; frozen weights are stored and applied in it. Statistics of norms, softmax, logits
and loss are float32 whatever the policy (see nn/).
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Policy:
    """Which dtype the towers compute in."""

    compute: Literal["bfloat16", "float32"] = "bfloat16"

    @property
    def dtype(self) -> Any:
        """The compute dtype as a jax dtype."""
        return jnp.dtype(self.compute)

    def cast(self, tree: Any) -> Any:
        """Returns the tree with its floating-point leaves in the compute dtype."""
        return jax.tree.map(
            lambda leaf: (
                leaf.astype(self.dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
            ),
            tree,
        )
