"""Creates weights: every weight of every model comes from `param`.

A weight is float32 and has one logical axis for each dimension. Shape, axes and initializer are on
the line where the weight is used. The models do not use hk.Linear, because Haiku gives a weight the
dtype of its input: bfloat16 activations would mean bfloat16 weights.

While `axes_of` traces an init function, `param` records path -> axes. A
`core.stack.Stack` transforms its blocks separately from the module around them. Inside a block
`param` knows only a part of the path, and the stack adds the rest with `inside`.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp
from jaxtyping import Array

from flamingo_jax.core import axes as axes_lib
from flamingo_jax.core import trees
from flamingo_jax.core.precision import Int8Weight

Axes = tuple[str | None, ...]
Initializer = Callable[..., Array]


@dataclasses.dataclass(frozen=True)
class Scope:
    """The path and the axes in front of those of a weight that is inside a stack."""

    prefix: str = ""
    axes: Axes = ()


@dataclasses.dataclass(frozen=True)
class _Born:
    """What is recorded of a weight: its axes, and those that its product contracts."""

    axes: Axes
    contracted: tuple[int, ...]


_NO_SCOPE = Scope()
_SCOPES: contextvars.ContextVar[Scope] = contextvars.ContextVar("scope", default=_NO_SCOPE)
_RECORD: contextvars.ContextVar[dict[str, _Born] | None] = contextvars.ContextVar(
    "record", default=None
)


def param(name: str, shape: tuple[int, ...], axes: Axes, init: Initializer) -> Array:
    """Returns the weight `name` of the current Haiku module, created as float32.

    Args:
        name: name within the module; the weight's path is `module/path/name`.
        shape: its shape, without the layer axis that a `core.stack.Stack` adds.
        axes: one logical axis (a word of `core.axes.RULES`) or None for each dimension of `shape`.
        init: a Haiku initializer, `init(shape, dtype)`.

    Raises:
        ValueError: if `axes` does not name each dimension once.
    """
    w = _made(name, shape, axes, init, ())
    if isinstance(w, Int8Weight):
        raise ValueError(
            f"Weight {hk.experimental.current_name()}/{name} is in 8 bits, and only weights made "
            "by `weight` can be."
        )
    return w


def weight(
    name: str, shape: tuple[int, ...], axes: Axes, init: Initializer, *, contracted: tuple[int, ...]
) -> Array | Int8Weight:
    """Returns a weight of `param` for `nn.linear.product`; where it is frozen, it may be in 8 bits.

    Args:
        name: as for `param`, like the next three.
        shape: its shape.
        axes: its logical axes.
        init: a Haiku initializer.
        contracted: the axes of `shape` that the product contracts. The others are output channels.
    """
    return _made(name, shape, axes, init, contracted)


def _made(
    name: str, shape: tuple[int, ...], axes: Axes, init: Initializer, contracted: tuple[int, ...]
) -> Array | Int8Weight:
    if len(axes) != len(shape):
        raise ValueError(
            f"Weight {hk.experimental.current_name()}/{name} has shape {shape} but axes {axes}: "
            "name each dimension."
        )
    record = _RECORD.get()
    if record is not None:
        scope = _SCOPES.get()
        record[f"{scope.prefix}{hk.experimental.current_name()}/{name}"] = _Born(
            scope.axes + tuple(axes), tuple(len(scope.axes) + axis for axis in contracted)
        )
    made = hk.get_parameter(name, shape, jnp.float32, init=init)
    if isinstance(made, Int8Weight):
        return made
    return axes_lib.constrain_gradient(made, tuple(axes))


def abstract_key() -> Any:
    """Returns the jax.ShapeDtypeStruct of a random key, for functions that compute nothing."""
    return jax.eval_shape(lambda: jax.random.key(0))


def axes_of(init: Callable[..., Any], *args: Any) -> dict[str, Axes]:
    """Returns the logical axes of each weight that `init(*args)` creates; computes nothing.

    Args:
        init: a Haiku init function, or a function that calls one. All weights come from `param`.
        *args: its arguments; arrays or jax.ShapeDtypeStruct.

    Returns:
        {"module/path/name": axes}, exactly one entry for each weight.

    Raises:
        ValueError: if a weight was not created by `param`, or two weights share a path.
    """
    return {path: born.axes for path, born in _recorded(init, *args).items()}


def contracted_of(init: Callable[..., Any], *args: Any) -> dict[str, tuple[int, ...]]:
    """Returns the axes that the product with each `weight` contracts; arguments as for `axes_of`.

    Returns:
        {"module/path/name": axes}, counted with the layer axis of a stack.
    """
    found = _recorded(init, *args).items()
    return {path: born.contracted for path, born in found if born.contracted}


def _recorded(init: Callable[..., Any], *args: Any) -> dict[str, _Born]:
    record: dict[str, _Born] = {}
    with _set(_RECORD, record):
        # A new function, because jax caches traces, and a cached trace would not call `param`.
        shapes = trees.flatten(jax.eval_shape(lambda *a: init(*a), *args))
    if unknown := sorted(set(shapes) ^ set(record)):
        raise ValueError(
            f"Weights and recorded axes differ at {unknown[:5]}: make every weight with "
            "core.params.param."
        )
    for path, born in record.items():
        if len(born.axes) != len(shapes[path].shape):
            raise ValueError(
                f"Weight {path} has shape {shapes[path].shape} but axes {born.axes}: two weights "
                "share this path."
            )
    return record


def scope_of_stack(name: str) -> Scope:
    """Returns the scope of the weights of a stack `name` within the current module."""
    outer, module = _SCOPES.get(), hk.experimental.current_name()
    module = "" if module == "~" else f"{module}/"  # "~": outside of any module
    return Scope(f"{outer.prefix}{module}{name}/", (*outer.axes, "layers"))


def inside(scope: Scope) -> contextlib.AbstractContextManager[None]:
    """In this context `param` records weights below `scope`."""
    return _set(_SCOPES, scope)


def unrecorded() -> contextlib.AbstractContextManager[None]:
    """In this context `param` records nothing, because the weights are already recorded."""
    return _set(_RECORD, None)


@contextlib.contextmanager
def _set(variable: contextvars.ContextVar[Any], value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)
