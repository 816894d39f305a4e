"""Where weights are born: `param` for one weight, `Stack` for a block repeated over layers.

Every weight of every model comes from `param`: float32, with one logical axis for each dimension, all on the line
where it is used. Haiku would give a weight the dtype of its input (bfloat16 activations would mean bfloat16 weights),
hence no hk.Linear in the models.

`Stack` holds the weights of `num_layers` equal blocks on one leading axis, "layers", and scans over it, so that 80 layers
compile as fast as one. Its blocks are transformed apart from the module around them, so `param` alone cannot know the
full path: `Stack` keeps it in `_SCOPES`. While `axes_of` traces an init function, `param` notes path -> axes there.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core import trees

Axes = tuple[str | None, ...]
Remat = Literal["none", "projections", "full"]
Initializer = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class _Scope:
    """What a weight inside a `Stack` cannot see of its surroundings: the path and the axes that are put in front."""

    prefix: str = ""
    axes: Axes = ()


SAVED = ("query", "key", "value", "attended", "mlp_hidden")
"""Activations that remat "projections" keeps (named with `jax.ad_checkpoint.checkpoint_name`): what column-split products give, and
the residual stream between attention and feed-forward."""

_NO_SCOPE = _Scope()
_SCOPES: contextvars.ContextVar[_Scope] = contextvars.ContextVar("scope", default=_NO_SCOPE)
_RECORD: contextvars.ContextVar[dict[str, Axes] | None] = contextvars.ContextVar("record", default=None)


def param(name: str, shape: tuple[int, ...], axes: Axes, init: Initializer) -> Array:
    """Returns the weight `name` of the current Haiku module, float32 at birth.

    Args:
        name: the weight's own name; its path is `module/path/name`.
        shape: its shape, without the layer axis that a `Stack` adds.
        axes: one logical axis (a word of `core.axes.RULES`) or None for each dimension of `shape`.
        init: a Haiku initializer, `init(shape, dtype)`.

    Raises:
        ValueError: if `axes` does not name each dimension once.
    """
    if len(axes) != len(shape):
        raise ValueError(
            f"Weight {hk.experimental.current_name()}/{name} has shape {shape} but axes {axes}: name each dimension."
        )
    record = _RECORD.get()
    if record is not None:
        scope = _SCOPES.get()
        record[f"{scope.prefix}{hk.experimental.current_name()}/{name}"] = scope.axes + tuple(axes)
    return axes_lib.constrain_gradient(hk.get_parameter(name, shape, jnp.float32, init=init), tuple(axes))


def axes_of(init: Callable[..., Any], *args: Any) -> dict[str, Axes]:
    """Returns the logical axes of each weight that `init(*args)` makes, without computing anything.

    Args:
        init: a Haiku init function (or a function that calls one) whose weights all come from `param`.
        *args: its arguments; arrays or jax.ShapeDtypeStruct.

    Returns:
        {"module/path/name": axes}, exactly one entry for each weight.

    Raises:
        ValueError: if a weight was made otherwise than by `param`, or two weights share a path.
    """
    record: dict[str, Axes] = {}
    with _inside(_RECORD, record):
        # A fresh function: jax caches traces, and a cached trace would not pass through `param`.
        shapes = trees.flatten(jax.eval_shape(lambda *a: init(*a), *args))
    if unknown := sorted(set(shapes) ^ set(record)):
        raise ValueError(
            f"Weights and recorded axes differ at {unknown[:5]}: make every weight with core.params.param."
        )
    for path, axes in record.items():
        if len(axes) != len(shapes[path].shape):
            raise ValueError(
                f"Weight {path} has shape {shapes[path].shape} but axes {axes}: two weights share this path."
            )
    return record


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

    def __init__(self, num_layers: int, block: Callable[..., tuple[Any, Any]], *, name: str, remat: Remat = "none"):
        """Describes the stack.

        Args:
            num_layers: how many blocks.
            block: Haiku function `block(x, inputs) -> (x, outputs)`; it may close over arrays, not over modules.
            name: the name of the stack within the current module.
            remat: what the backward pass recomputes of a block: "none" keeps all activations; "projections" keeps those that are
                named with `checkpoint_name` (one of `SAVED`), so that no collective and no large product is done twice; "full"
                keeps the block's input alone.
        """
        self.num_layers = num_layers
        self._inner = hk.transform(block)
        self._name = name
        self._remat = remat

    def weights(self, x: Any, inputs: Any = None) -> Any:
        """Returns the stacked weights; `x` and `inputs` (of one layer) are examples that are needed at init only."""
        scope = _SCOPES.get()
        module = hk.experimental.current_name()
        prefix = f"{scope.prefix}{'' if module == '~' else module + '/'}{self._name}/"  # "~": outside of any module

        def init(keys: Array, x: Any, inputs: Any) -> Any:
            with _inside(_SCOPES, _Scope(prefix, (*scope.axes, "layers"))):
                return jax.vmap(lambda key: self._inner.init(key, x, inputs))(keys)

        keys = hk.next_rng_keys(self.num_layers) if hk.running_init() else None
        return hk.lift(init, name=self._name)(keys, x, inputs)

    def layer(self, weights: Any, x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies one block with one layer's weights (no leading axis)."""
        return self._apply(lambda: weights, x, inputs)

    def layer_of(self, weights: Any, number: Any, x: Any, inputs: Any = None) -> tuple[Any, Any]:
        """Applies block `number` with its slice of all weights, which is taken again in the backward pass and never kept.

        For weights that are not trained: a gradient would be as large as the whole stack in each step of a scan.
        """
        own = lambda: jax.tree.map(lambda w: jax.lax.dynamic_index_in_dim(w, number, keepdims=False), weights)  # noqa: E731
        return self._apply(own, x, inputs)

    def _apply(self, weights: Callable[[], Any], x: Any, inputs: Any) -> tuple[Any, Any]:
        def apply(x: Any, inputs: Any) -> tuple[Any, Any]:
            with _inside(_RECORD, None):  # the weights were noted when `weights` made them
                return self._inner.apply(weights(), None, x, inputs)

        if self._remat == "none":
            return apply(x, inputs)
        policy = jax.checkpoint_policies.save_only_these_names(*SAVED) if self._remat == "projections" else None
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
        """Applies the layers whose weights (and inputs) stand on the leading axis: all of them, or a range."""
        if not is_unrolled(weights):
            return jax.lax.scan(lambda x, w: self.layer(w[0], x, w[1]), x, (weights, inputs))
        outputs = []
        for number in range(self.num_layers):
            x, output = self.layer(layer_slice(weights, number), x, layer_slice(inputs, number))
            outputs.append(output)
        return x, join_layers(outputs)


def layer_slice(tree: Any, index: int | slice) -> Any:
    """Returns the weights or inputs of one layer, or of a range of layers, of a stacked or unrolled tree."""
    return jax.tree.map(lambda leaf: leaf[index], tree, is_leaf=_is_layers)


def unrolled(tree: Any) -> Any:
    """Returns a stacked tree with `Layers` for leaves (those that are such already stay).

    A `Stack` that finds them applies its blocks one by one, not in a scan. A scan takes each layer's weights out of the stacked array, and
    where there are few tokens, as in decoding, a CPU spends more time on these copies than on the products. Unrolled layers have none, and
    take longer to compile, the more there are. For inference: what a gradient passes through is better scanned.
    """
    apart = lambda leaf: leaf if _is_layers(leaf) else Layers(leaf[i] for i in range(len(leaf)))  # noqa: E731
    return jax.tree.map(apart, tree, is_leaf=_is_layers)


def unrolled_weights(params: trees.Params, axes: Mapping[str, Axes]) -> trees.Params:
    """Returns the weights of a model, those of its stacks `unrolled`; `axes`: of all of them (`axes_of`)."""
    flat = trees.flatten(params)
    return trees.unflatten({path: unrolled(w) if axes[path][:1] == ("layers",) else w for path, w in flat.items()})


def stacked(leaf: Any) -> Any:
    """Returns the one array of `Layers`; other arrays as they are."""
    return jnp.stack(leaf.layers) if isinstance(leaf, Layers) else leaf


def is_unrolled(tree: Any) -> bool:
    """Whether a stack's weights, inputs or outputs are `unrolled`."""
    return any(map(_is_layers, jax.tree.leaves(tree, is_leaf=_is_layers)))


def join_layers(outputs: Iterable[Any]) -> Any:
    """Returns the outputs of each layer as one tree of `Layers`."""
    return jax.tree.map(lambda *leaves: Layers(leaves), *outputs)


def _is_layers(leaf: Any) -> bool:
    return isinstance(leaf, Layers)


@contextlib.contextmanager
def _inside(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
