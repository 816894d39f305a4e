"""Trees of weights by path.

Flat views, tables that match each weight exactly once, splits, counts and hashes.

A tree is Haiku's two-level dict {module: {name: array}}; the path of a weight is "module/name".
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
    """A weight is matched by no row, or by several rows, of a table that speaks of weights."""


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
    """Looks each path up in a table of (regular expression, value).

    Args:
        paths: the weights' paths.
        table: rows; an expression must match the whole path.
        what: the table's name, for messages ("weight decay").
        allow_unused: whether a row may match no weight.

    Returns:
        {path: value}.

    Raises:
        TableError: if a weight is matched by no row or by more than one, or a row by no weight.
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
    """Puts disjoint trees together; a weight in two of them is an error."""
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
    """Returns the modules at or under `prefix`, with `prefix/` cut off (a module equal to `prefix` becomes "")."""
    cut = {
        m: m[len(prefix) :].lstrip("/") for m in params if m == prefix or m.startswith(prefix + "/")
    }
    return {short: dict(params[m]) for m, short in cut.items()}


def under(params: Params, prefix: str) -> dict[str, dict[str, Any]]:
    """Returns the modules below `prefix`, with their whole names."""
    return {
        module: dict(weights)
        for module, weights in params.items()
        if module.startswith(f"{prefix}/")
    }


def count(params: Params) -> int:
    """Returns the number of scalars; arrays or abstract shapes."""
    return sum(math.prod(leaf.shape) for leaf in flatten(params).values())


def content_hash(params: Params) -> str:
    """Returns a sha256 of all paths, dtypes, shapes and values: the identity of a frozen tower."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        array = np.asarray(leaf)
        digest.update(hash_heading(path, array))
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def hash_heading(path: str, leaf: Any) -> bytes:
    """Returns what the content hash is fed before a weight's values, which follow in C order, all at once or in parts."""
    # A scalar counts as numpy's contiguous copy of it has it, so that exports of version 0.3.0 stay
    # what they were.
    shape = tuple(leaf.shape) or (1,)
    return f"{path}|{leaf.dtype}|{shape}|".encode()
