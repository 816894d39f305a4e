"""Functions on trees of weights: flat views, tables of patterns, splits, counts and hashes.

A tree is Haiku's two-level dict {module: {name: array}}. The path of a weight is "module/name".
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from typing import Any, TypeAlias, TypeVar

import numpy as np

T = TypeVar("T")
Tree: TypeAlias = Mapping[str, Mapping[str, T]]
Params = Mapping[str, Mapping[str, Any]]
Table = tuple[tuple[str, Any], ...]


class TableError(ValueError):
    """A weight is matched by no row, or by several rows, of a table of weights."""


def flatten(params: Params) -> dict[str, Any]:
    """Returns {"module/name": leaf}, sorted by path."""
    return {f"{m}/{n}": leaf for m in sorted(params) for n, leaf in sorted(params[m].items())}


def unflatten(flat: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Inverse of `flatten`: the last component of a path is the weight's name."""
    params: dict[str, dict[str, Any]] = {}
    for path, leaf in flat.items():
        module, _, name = path.rpartition("/")
        params.setdefault(module, {})[name] = leaf
    return params


def match_once(
    paths: Mapping[str, Any] | list[str], table: Table, *, what: str, allow_unused: bool = False
) -> dict[str, Any]:
    """Looks up each path in a table of (regular expression, value), where one row must match it.

    Args:
        paths: the weights' paths.
        table: the rows. An expression must match the whole path.
        what: name of the table in messages, such as "weight decay".
        allow_unused: whether a row may match no weight.

    Returns:
        {path: value}.

    Raises:
        TableError: if no row or several rows match a weight, or a row matches no weight.
    """
    found: dict[str, Any] = {}
    unused = {pattern for pattern, _ in table}
    for path in paths:
        rows = [(pattern, value) for pattern, value in table if re.fullmatch(pattern, path)]
        if len(rows) != 1:
            got = "no row" if not rows else f"{len(rows)} rows: {[pattern for pattern, _ in rows]}"
            raise TableError(
                f"The {what} table matches weight {path!r} by {got}; expected exactly one. Mend "
                "the table."
            )
        found[path] = rows[0][1]
        unused.discard(rows[0][0])
    if unused and not allow_unused:
        raise TableError(
            f"The {what} table has rows that match no weight: {sorted(unused)}. "
            "Delete or mend them."
        )
    return found


def partition(
    params: Params, chosen: Mapping[str, bool]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """Splits a tree into (the weights with chosen[path], the others)."""
    flat = flatten(params)
    yes = {path: leaf for path, leaf in flat.items() if chosen[path]}
    no = {path: leaf for path, leaf in flat.items() if not chosen[path]}
    return unflatten(yes), unflatten(no)


def merge(*parts: Params) -> dict[str, dict[str, Any]]:
    """Returns the union of trees; a weight that is in two of them is an error."""
    merged: dict[str, Any] = {}
    for part in parts:
        flat = flatten(part)
        if twice := sorted(set(flat) & set(merged)):
            raise ValueError(
                f"Cannot merge trees: weights {twice[:5]} are in more than one of them."
            )
        merged.update(flat)
    return unflatten(merged)


def subtree(params: Params, prefix: str) -> dict[str, dict[str, Any]]:
    """Returns the modules at or below `prefix`, named without `prefix/`; `prefix` itself is ""."""
    cut = {
        m: m[len(prefix) :].lstrip("/") for m in params if m == prefix or m.startswith(prefix + "/")
    }
    return {short: dict(params[m]) for m, short in cut.items()}


def under(params: Params, prefix: str) -> dict[str, dict[str, Any]]:
    """Returns the modules below `prefix`, with their full names."""
    return {
        module: dict(weights)
        for module, weights in params.items()
        if module.startswith(f"{prefix}/")
    }


def count(params: Params) -> int:
    """Returns the number of scalars in a tree of arrays or abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in flatten(params).values())


def content_hash(params: Params) -> str:
    """Returns a sha256 of all paths, dtypes, shapes and values; it identifies a frozen tower."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        array = np.asarray(leaf)
        digest.update(hash_heading(path, array))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def hash_heading(path: str, leaf: Any) -> bytes:
    """Returns the bytes that `content_hash` reads before the values of a weight (in C order)."""
    # A scalar has the shape of numpy's contiguous copy of it, so the hashes of exports of version
    # 0.3.0 remain valid.
    shape = tuple(leaf.shape) or (1,)
    return f"{path}|{leaf.dtype}|{shape}|".encode()
