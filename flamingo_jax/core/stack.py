"""Applies a block to one layer after another: `Stack`, and the two forms of its weights.

    stacked    one array for each weight, with a leading axis "layers": the blocks are scanned, so
               80 layers compile as fast as one
    unrolled   one array for each weight and layer (`Layers`): a Python loop applies the blocks

Models call a `Stack` and do not ask which form it has. Caches have the form of the weights.

The scan over stacked weights has two forms itself (`with_loops`): a loop, or one layer after
another in the program.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flamingo_jax.core import trees
from flamingo_jax.core.params import Axes, inside, scope_of_stack, unrecorded

Remat = Literal["none", "projections", "full"]
Loops = Literal["scanned", "unrolled"]
BETWEEN = "between"
"""Name of the residual stream between two blocks of `Stack.body_of`, which every remat keeps."""
SAVED = ("query", "key", "value", "attended", "mlp_hidden", "convolved", BETWEEN)
"""Activations that remat "projections" keeps (named with `jax.ad_checkpoint.checkpoint_name`).

They are the results of column-split products, the residual stream between attention and
feed-forward, the results of convolutions, and `BETWEEN`.
"""

_LOOPS: contextvars.ContextVar[Loops] = contextvars.ContextVar("loops", default="scanned")
_IN_LOOP: contextvars.ContextVar[bool] = contextvars.ContextVar("in_loop", default=False)


@contextlib.contextmanager
def with_loops(loops: Loops) -> Iterator[None]:
    """Decides how the scans over stacked weights that are traced inside the context compile.

    Args:
        loops: "scanned" compiles one layer and loops over it. "unrolled" compiles all layers, so
            that the backward pass gets the activations as they are: a loop copies them into stacked
            arrays and out of them.
    """
    with _during(_LOOPS, loops):
        yield


@contextlib.contextmanager
def _during(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@jax.tree_util.register_pytree_node_class
class Layers:
    """One array for each layer, in place of one array with a leading layer axis (`unrolled`)."""

    def __init__(self, layers: Iterable[Any]):
        self.layers = tuple(layers)

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, index: int | slice) -> Any:
        """Returns one layer, or the `Layers` of a range."""
        found = self.layers[index]
        return Layers(found) if isinstance(index, slice) else found

    def tree_flatten(self) -> tuple[tuple[Any, ...], None]:
        return self.layers, None

    @classmethod
    def tree_unflatten(cls, _: None, layers: Iterable[Any]) -> Layers:
        return cls(layers)


class Stack:
    """`num_layers` blocks of equal shape, with stacked weights, applied by a scan.

    The weights are named `<current module>/<name>/...` and have a leading axis "layers".
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
            num_layers: number of blocks.
            block: Haiku function `block(x, inputs) -> (x, outputs)`. It may close over arrays, not
                over modules.
            name: name of the stack within the current module.
            remat: which activations of a block the backward pass keeps and does not recompute:
                "none" keeps all; "projections" keeps those that are named with `checkpoint_name`
                (one of `SAVED`), so that no collective, large product or convolution is computed
                twice;
                "full" keeps only the input of the block (and what is named `BETWEEN`).
            unrolled: True applies stacked weights in a Python loop.
        """
        self.num_layers = num_layers
        self._inner = hk.transform(block)
        self._name = name
        self._remat = remat
        self._unrolled = unrolled

    def weights(self, x: Any, inputs: Any = None) -> Any:
        """Returns the stacked weights; init needs `x` and `inputs` (of one layer) as examples."""
        scope = scope_of_stack(self._name)

        def init(keys: Array, x: Any, inputs: Any) -> Any:
            with inside(scope):
                return jax.vmap(lambda key: self._inner.init(key, x, inputs))(keys)

        keys = hk.next_rng_keys(self.num_layers) if hk.running_init() else None
        return hk.lift(init, name=self._name)(keys, x, inputs)

    def layer(self, weights: Any, x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies one block with one layer's weights (no leading axis)."""
        return self._apply(lambda: weights, x, inputs)

    def layer_of(
        self,
        weights: trees.Params,
        number: Any,
        x: Any,
        inputs: Any = None,
        *,
        trained: trees.Params | None = None,
    ) -> tuple[Any, Any]:
        """Applies block `number` with its slice of the frozen weights.

        The backward pass takes the slice again. In each step of a scan, the gradient of a trained
        weight would have the size of the whole stack: so the scan slices these itself.

        Args:
            weights: the frozen weights of all blocks.
            number: one of `numbers(weights)`.
            x: what the block transforms.
            inputs: of the block.
            trained: the other weights of this block, without the layer axis.
        """
        return self._apply(self._own(weights, number, trained), x, inputs)

    def scan_of(self, weights: trees.Params, x: Any, own: tuple[Any, Any, Any]) -> tuple[Any, Any]:
        """Applies a range of blocks, one after another.

        Args:
            weights: the frozen weights of all blocks.
            x: what the blocks transform.
            own: (numbers, inputs, trained weights) of the range, as `layer_of` takes them.

        Returns:
            (x, outputs of the blocks).
        """

        def run(x: Any, own: Any) -> tuple[Any, Any]:
            number, inputs, trained = own
            return self.layer_of(weights, number, x, inputs, trained=trained)

        return scan(run, x, own)

    def body_of(self, weights: trees.Params, x: Any, own: tuple[Any, Any, Any]) -> Any:
        """Applies a range of blocks as one body of the program; arguments as in `scan_of`.

        The compiler may move instructions from block to block. The tree of x may change from block
        to block (`models.halves.Halves`). The blocks are rematerialised together; what they name
        `BETWEEN` is kept.

        Returns:
            x; the blocks have no outputs.
        """

        def run(x: Any) -> Any:
            for number, inputs, trained in _each_layer(own):
                x, _ = self._once(self._own(weights, number, trained), x, inputs)
            return x

        return self._kept(run)(x)

    def numbers(self, weights: Any) -> Any:
        """Returns the numbers of the blocks, in the form of `weights`, to scan `layer_of`."""
        if is_unrolled(weights):
            return Layers(range(self.num_layers))
        return jnp.arange(self.num_layers, dtype=jnp.int32)

    def _own(
        self, weights: trees.Params, number: Any, trained: trees.Params | None
    ) -> Callable[[], Any]:
        """Returns a function that takes the weights of one block; arguments as in `layer_of`."""
        index = lambda w: jax.lax.dynamic_index_in_dim(w, number, keepdims=False)

        def take() -> Any:
            if is_unrolled(weights):
                own = layer_slice(weights, number)
            else:
                own = jax.tree.map(index, weights)
            return trees.merge(own, trained or {})

        return take

    def _apply(self, weights: Callable[[], Any], x: Any, inputs: Any) -> tuple[Any, Any]:
        return self._kept(functools.partial(self._once, weights))(x, inputs)

    def _once(self, weights: Callable[[], Any], x: Any, inputs: Any) -> tuple[Any, Any]:
        with unrecorded():  # `weights` has recorded them
            return self._inner.apply(weights(), None, x, inputs)

    def _kept(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the function with this stack's remat."""
        if self._remat == "none":
            return function
        # Inside a loop XLA cannot merge the recomputation with the forward pass.
        prevent = not _IN_LOOP.get()
        return jax.checkpoint(function, prevent_cse=prevent, policy=saved_by(self._remat))

    def __call__(self, x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies all blocks, one after another.

        Args:
            x: what the blocks transform.
            inputs: a tree of arrays with a leading layer axis, one slice for each block; or None.

        Returns:
            (x, outputs): outputs stacked on a leading layer axis.
        """
        return self.scan(x, self.weights(x, layer_slice(inputs, 0)), inputs)

    def scan(self, x: Any, weights: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies the layers whose weights and inputs are given: all, or a range."""
        return scan(
            lambda x, w: self.layer(w[0], x, w[1]), x, (weights, inputs), unrolled=self._unrolled
        )


def saved_by(remat: Remat) -> Callable[..., bool]:
    """Returns the policy of `jax.checkpoint` for "projections" or "full"."""
    names = SAVED if remat == "projections" else (BETWEEN,)
    return jax.checkpoint_policies.save_only_these_names(*names)


def scan(
    function: Callable[[Any, Any], tuple[Any, Any]], x: Any, inputs: Any, *, unrolled: bool = False
) -> tuple[Any, Any]:
    """Applies function(x, one layer's inputs) -> (x, outputs) to one layer after another.

    Args:
        function: one layer.
        x: what the layers transform.
        inputs: of all layers, stacked or unrolled; the first leaf determines their number.
        unrolled: True applies stacked inputs in a Python loop.

    Returns:
        (x, outputs): outputs stacked on a leading layer axis after a scan, else unrolled.
    """
    if not (unrolled or is_unrolled(inputs)):
        at_once = _LOOPS.get() == "unrolled"
        # XLA removes a loop of one step.
        in_loop = _IN_LOOP.get() or not (at_once or _num_layers(inputs) == 1)

        def step(x: Any, one: Any) -> tuple[Any, Any]:
            with _during(_IN_LOOP, in_loop):
                return function(x, one)

        return jax.lax.scan(step, x, inputs, unroll=at_once)
    outputs = []
    for number in range(_num_layers(inputs)):
        x, output = function(x, layer_slice(inputs, number))
        outputs.append(output)
    return x, join_layers(outputs)


def layer_slice(tree: Any, index: int | slice) -> Any:
    """Returns one layer, or a range of layers, of a stacked or unrolled tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=_is_layers)


def unrolled(tree: Any) -> Any:
    """Splits the stacked arrays of a tree into one array for each layer (`Layers`).

    A `Stack` applies unrolled weights in a Python loop, not in a scan. A scan copies each layer's
    weights out of the stacked array. With few tokens, as in decoding, a CPU spends more time on
    these copies than on the products. Unrolled layers need no copies, but their compile time grows
    with the number of layers. This is for inference; in training a scan is better.
    """
    apart = lambda leaf: leaf if _is_layers(leaf) else Layers(leaf[i] for i in range(len(leaf)))
    return jax.tree.map(apart, tree, is_leaf=_is_layers)


def unrolled_weights(params: trees.Params, axes: Mapping[str, Axes]) -> trees.Params:
    """Returns the weights of a model with its stacks `unrolled`; `axes` are of all weights."""
    flat = trees.flatten(params)
    return trees.unflatten(
        {path: unrolled(w) if axes[path][:1] == ("layers",) else w for path, w in flat.items()}
    )


def stacked(leaf: Any) -> Any:
    """Returns `Layers` as one stacked array, and other arrays unchanged."""
    return jnp.stack(leaf.layers) if isinstance(leaf, Layers) else leaf


def is_unrolled(tree: Any) -> bool:
    """Returns True if the layers are stored separately instead of stacked."""
    return any(map(_is_layers, jax.tree.leaves(tree, is_leaf=_is_layers)))


def join_layers(outputs: Iterable[Any]) -> Any:
    """Returns the outputs of single layers as one tree of `Layers`."""
    return jax.tree.map(lambda *leaves: Layers(leaves), *outputs, is_leaf=_is_layers)


def concatenate(parts: Iterable[Any]) -> Any:
    """Concatenates the outputs of several ranges of layers; all stacked, or all unrolled."""

    def join(*leaves: Any) -> Any:
        if _is_layers(leaves[0]):
            return Layers(layer for leaf in leaves for layer in leaf.layers)
        return jnp.concatenate(leaves)

    return jax.tree.map(join, *parts, is_leaf=_is_layers)


def single(output: Any, weights: Any) -> Any:
    """Returns the output of one layer as that of a range of one, in the form of `weights`."""
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
    """Inverse of `grouped`: joins the two leading axes."""

    def join(leaf: Any) -> Any:
        if _is_layers(leaf):
            return Layers(layer for group in leaf.layers for layer in group.layers)
        return leaf.reshape(-1, *leaf.shape[2:])

    return jax.tree.map(join, tree, is_leaf=_is_layers)


def _num_layers(tree: Any) -> int:
    return len(jax.tree.leaves(tree, is_leaf=_is_layers)[0])


def _each_layer(tree: Any) -> list[Any]:
    """Returns the layers of a stacked or unrolled tree.

    The gradient of a stacked leaf is one concatenation. That of `layer_slice` would be a sum of
    arrays of the size of all layers.
    """
    number = _num_layers(tree)

    def split(leaf: Any) -> Any:
        if _is_layers(leaf):
            return leaf.layers
        return [jnp.squeeze(one, 0) for one in jax.lax.split(leaf, (1,) * number)]

    leaves, form = jax.tree.flatten(tree, is_leaf=_is_layers)
    return [jax.tree.unflatten(form, own) for own in zip(*map(split, leaves), strict=True)]


def _is_layers(leaf: Any) -> bool:
    return isinstance(leaf, Layers)
