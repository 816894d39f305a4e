"""A block repeated over layers: `Stack`, and the two forms in which its weights come.

stacked    one array for each weight, with a leading axis "layers": blocks are scanned, so that 80 layers compile as fast as one
unrolled   one array for each weight and layer (`Layers`): blocks are applied one by one

Only this file knows that blocks are scanned or applied in a Python loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flamingo_jax.core import trees
from flamingo_jax.core.params import Axes, inside, scope_of_stack, unrecorded

Remat = Literal["none", "projections", "full"]
SAVED = ("query", "key", "value", "attended", "mlp_hidden")
"""Activations that remat "projections" keeps (named with `jax.ad_checkpoint.checkpoint_name`).

What column-split products give, and
the residual stream between attention and feed-forward."""


@jax.tree_util.register_pytree_node_class
class Layers:
    """The arrays of each layer by themselves, where a stack has one array with a leading layer axis (see `unrolled`)."""

    def __init__(self, layers: Iterable[Any]):
        """`layers`: in their order."""
        self.layers = tuple(layers)

    def __len__(self) -> int:
        """How many layers."""
        return len(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        """One layer, or a range of layers."""
        found = self.layers[index]
        return Layers(found) if isinstance(index, slice) else found

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        """For jax.tree_util."""
        return self.layers, None

    @classmethod
    def tree_unflatten(cls, _: None, layers: Iterable[Any]) -> Layers:
        """For jax.tree_util."""
        return cls(layers)


class Stack:
    """`num_layers` blocks of equal shape, with their weights stacked and their application scanned.

    The weights live under `<current module>/<name>/...` with a leading axis "layers".
    """

    def __init__(
        self,
        num_layers: int,
        block: Callable[..., tuple[Any, Any]],
        *,
        name: str,
        remat: Remat = "none",
        unrolled: bool = False,
    ):
        """Describes the stack.

        Args:
            num_layers: how many blocks.
            block: Haiku function `block(x, inputs) -> (x, outputs)`; it may close over arrays, not
                over modules.
            name: the name of the stack within the current module.
            remat: what the backward pass recomputes of a block: "none" keeps all activations;
                "projections" keeps those that are named with `checkpoint_name` (one of `SAVED`), so
                that no collective and no large product is done twice; "full" keeps the block's
                input alone.
            unrolled: True applies the blocks one by one, although their weights are stacked.
        """
        self.num_layers = num_layers
        self._inner = hk.transform(block)
        self._name = name
        self._remat = remat
        self._unrolled = unrolled

    def weights(self, x: Any, inputs: Any = None) -> Any:
        """Returns the stacked weights.

        `x` and `inputs` (of one layer) are examples that are needed at init only.
        """
        scope = scope_of_stack(self._name)

        def init(keys: Array, x: Any, inputs: Any) -> Any:
            with inside(scope):
                return jax.vmap(lambda key: self._inner.init(key, x, inputs))(keys)

        keys = hk.next_rng_keys(self.num_layers) if hk.running_init() else None
        return hk.lift(init, name=self._name)(keys, x, inputs)

    def layer(self, weights: Any, x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies one block with one layer's weights (no leading axis)."""
        return self._apply(lambda: weights, x, inputs)

    def layer_of(self, weights: Any, number: Any, x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies block `number` with its slice of all weights, which is taken again in the backward pass and never kept.

        For weights that are not trained: a gradient would be as large as the whole stack in each
        step of a scan. `number` is one of `numbers(weights)`.
        """
        if is_unrolled(weights):
            return self.layer(layer_slice(weights, number), x, inputs)
        own = lambda: jax.tree.map(
            lambda w: jax.lax.dynamic_index_in_dim(w, number, keepdims=False), weights
        )
        return self._apply(own, x, inputs)

    def numbers(self, weights: Any) -> Any:
        """Returns the blocks' numbers 0, 1, ... in the form of the weights, for `scan` over `layer_of`."""
        if is_unrolled(weights):
            return Layers(range(self.num_layers))
        return jnp.arange(self.num_layers, dtype=jnp.int32)

    def _apply(self, weights: Callable[[], Any], x: Any, inputs: Any) -> tuple[Any, Any]:
        def apply(x: Any, inputs: Any) -> tuple[Any, Any]:
            with unrecorded():  # `weights` made and noted them
                return self._inner.apply(weights(), None, x, inputs)

        if self._remat == "none":
            return apply(x, inputs)
        policy = (
            jax.checkpoint_policies.save_only_these_names(*SAVED)
            if self._remat == "projections"
            else None
        )
        # prevent_cse: inside a scan nothing can be merged away.
        return jax.checkpoint(apply, prevent_cse=False, policy=policy)(x, inputs)

    def __call__(self, x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies all blocks in turn.

        Args:
            x: what the blocks transform.
            inputs: a tree of arrays with a leading layer axis, one slice for each block; or None.

        Returns:
            (x, outputs): outputs stacked on a leading layer axis.
        """
        return self.scan(x, self.weights(x, layer_slice(inputs, 0)), inputs)

    def scan(self, x: Any, weights: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies the layers whose weights (and inputs) stand on the leading axis.

        All of them, or a range.
        """
        return scan(
            lambda x, w: self.layer(w[0], x, w[1]), x, (weights, inputs), unrolled=self._unrolled
        )


def scan(
    function: Callable[[Any, Any], tuple[Any, Any]], x: Any, inputs: Any, *, unrolled: bool = False
) -> tuple[Any, Any]:
    """Applies function(x, one layer's inputs) -> (x, outputs) to one layer after another.

    Args:
        function: of a layer.
        x: what the layers transform.
        inputs: of all layers, stacked or unrolled; the first leaf says how many there are.
        unrolled: True applies the layers one by one, although their inputs are stacked.

    Returns:
        (x, outputs): stacked on a leading layer axis if the layers are scanned, else unrolled.
    """
    if not (unrolled or is_unrolled(inputs)):
        return jax.lax.scan(function, x, inputs)
    outputs = []
    for number in range(len(jax.tree.leaves(inputs, is_leaf=_is_layers)[0])):
        x, output = function(x, layer_slice(inputs, number))
        outputs.append(output)
    return x, join_layers(outputs)


def layer_slice(tree: Any, index: int | slice) -> Any:
    """Returns the weights or inputs of one layer, or of a range of layers, of a stacked or unrolled tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=_is_layers)


def unrolled(tree: Any) -> Any:
    """Returns a stacked tree with `Layers` for leaves (those that are such already stay).

    A `Stack` that finds them applies its blocks one by one, not in a scan. A scan takes each
    layer's weights out of the stacked array, and where there are few tokens, as in decoding, a CPU
    spends more time on these copies than on the products. Unrolled layers have none, and take
    longer to compile, the more there are. For inference: what a gradient passes through is better
    scanned.
    """
    apart = lambda leaf: leaf if _is_layers(leaf) else Layers(leaf[i] for i in range(len(leaf)))
    return jax.tree.map(apart, tree, is_leaf=_is_layers)


def unrolled_weights(params: trees.Params, axes: Mapping[str, Axes]) -> trees.Params:
    """Returns the weights of a model, those of its stacks `unrolled`; `axes`.

    Of all of them (`axes_of`).
    """
    flat = trees.flatten(params)
    return trees.unflatten(
        {path: unrolled(w) if axes[path][:1] == ("layers",) else w for path, w in flat.items()}
    )


def stacked(leaf: Any) -> Any:
    """Returns the one array of `Layers`; other arrays as they are."""
    return jnp.stack(leaf.layers) if isinstance(leaf, Layers) else leaf


def is_unrolled(tree: Any) -> bool:
    """Whether a stack's weights, inputs or outputs are `unrolled`."""
    return any(map(_is_layers, jax.tree.leaves(tree, is_leaf=_is_layers)))


def join_layers(outputs: Iterable[Any]) -> Any:
    """Returns the outputs of each layer as one tree of `Layers`."""
    return jax.tree.map(lambda *leaves: Layers(leaves), *outputs, is_leaf=_is_layers)


def concatenate(parts: Iterable[Any]) -> Any:
    """Returns the outputs of several ranges of layers as those of one, stacked or unrolled as they are."""

    def join(*leaves: Any) -> Any:
        if _is_layers(leaves[0]):
            return Layers(layer for leaf in leaves for layer in leaf.layers)
        return jnp.concatenate(leaves)

    return jax.tree.map(join, *parts, is_leaf=_is_layers)


def single(output: Any, weights: Any) -> Any:
    """Returns the outputs of one layer as those of a range of one, in the form (stacked or unrolled) of `weights`."""
    return (
        join_layers([output])
        if is_unrolled(weights)
        else jax.tree.map(lambda leaf: leaf[None], output)
    )


def grouped(tree: Any, groups: int) -> Any:
    """Splits the leading layer axis into (groups, layers of a group), for a scan over groups."""

    def split(leaf: Any) -> Any:
        size = len(leaf) // groups
        if _is_layers(leaf):
            return Layers(leaf[start : start + size] for start in range(0, len(leaf), size))
        return leaf.reshape(groups, size, *leaf.shape[1:])

    return jax.tree.map(split, tree, is_leaf=_is_layers)


def ungrouped(tree: Any) -> Any:
    """Joins the two axes that `grouped` made."""

    def join(leaf: Any) -> Any:
        if _is_layers(leaf):
            return Layers(layer for group in leaf.layers for layer in group.layers)
        return leaf.reshape(-1, *leaf.shape[2:])

    return jax.tree.map(join, tree, is_leaf=_is_layers)


def _is_layers(leaf: Any) -> bool:
    return isinstance(leaf, Layers)
