"""Mappings: each source is read or skipped, each target is made once, all shapes fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion import mapping, transforms
from flamingo_jax.conversion.mapping import Constant, Rule, Skip, assemble, check
from flamingo_jax.conversion.reading import ConversionError, InMemory
from flamingo_jax.core import trees

BF16 = jnp.bfloat16


def _float(*shape, dtype=np.float32, start=0):
    return (np.arange(np.prod(shape, dtype=int)) + start).reshape(shape).astype(dtype)


FILES = {
    "embed.weight": _float(5, 4),
    "h.0.w": _float(6, 4),
    "h.2.w": _float(6, 4, start=100),
    "h.0.q": _float(6, 4, start=1),
    "h.2.q": _float(6, 4, start=2),
    "h.0.qb": _float(6),
    "h.2.qb": _float(6, start=9),
    "mask": np.ones((2, 2), np.bool_),
}
ROWS = (
    Rule("embed.weight", "m/table", transforms.pad_rows(8)),
    Rule("h.{layer}.w", "m/stack/w", transforms.transpose, layers=(0, 2)),
    Rule("h.{layer}.q", "m/stack/q", transforms.heads_in(2, 3), layers=(0, 2)),
    Rule(
        ("h.{layer}.qb", "h.{layer}.q"),
        "m/stack/b",
        lambda b, q: transforms.heads_bias(2, 3)(b) + q[0, 0],
        layers=(0, 2),
    ),
    Constant("m/gate", np.zeros, "starts closed"),
    Skip("mask|position_ids", "a constant"),
)
SHAPES = {
    "m/table": (8, 4),
    "m/stack/w": (2, 4, 6),
    "m/stack/q": (2, 4, 2, 3),
    "m/stack/b": (2, 2, 3),
    "m/gate": (3,),
}


def _targets(**changes):
    shapes = SHAPES | {key.replace("__", "/"): shape for key, shape in changes.items()}
    return {
        path: jax.ShapeDtypeStruct(shape, np.float32)
        for path, shape in shapes.items()
        if shape is not None
    }


def _files(**changes):
    return InMemory({name: array for name, array in (FILES | changes).items() if array is not None})


def test_every_array_arrives_where_the_rows_say():
    files = _files()
    plan = check(ROWS, files.names(), _targets())
    params = trees.flatten(assemble(plan, files))
    assert plan.skipped == {"mask": "a constant"}
    assert set(params) == set(SHAPES)
    np.testing.assert_array_equal(
        params["m/table"], np.concatenate([FILES["embed.weight"], np.zeros((3, 4))])
    )
    np.testing.assert_array_equal(
        params["m/stack/w"], np.stack([FILES["h.0.w"].T, FILES["h.2.w"].T])
    )
    np.testing.assert_array_equal(params["m/stack/q"][1, :, 1, 2], FILES["h.2.q"][5])
    np.testing.assert_array_equal(params["m/stack/b"][1], FILES["h.2.qb"].reshape(2, 3) + 2)
    np.testing.assert_array_equal(params["m/gate"], np.zeros(3))


@pytest.mark.parametrize(
    ("transform", "shape", "expected"),
    [
        (transforms.conv, (8, 3, 5, 4), lambda x: np.einsum("oikl->klio", x)),
        (transforms.heads_out(2, 3), (4, 6), lambda x: np.einsum("dhk->hkd", x.reshape(4, 2, 3))),
        (transforms.chunk(1, 3), (6, 4), lambda x: x[2:4]),
        (transforms.chunk(0, 2, axis=1), (6, 4), lambda x: x[:, :2]),
        (transforms.head_part(2, 3, 2), (12, 4), lambda x: np.concatenate([x[4:6], x[10:12]])),
        (transforms.head_part(0, 3, 2), (12,), lambda x: np.concatenate([x[:2], x[6:8]])),
        (transforms.rows(1, None), (4, 2), lambda x: x[1:]),
        (transforms.pad_rows(4), (4, 2), lambda x: x),
        (transforms.chain(transforms.rows(0, 3), transforms.transpose), (4, 2), lambda x: x[:3].T),
        (transforms.scalar, (1, 1), lambda x: x[0, 0]),
        (transforms.flat, (3, 1, 1), lambda x: x[:, 0, 0]),
    ],
)
def test_transforms(transform, shape, expected):
    x = _float(*shape)
    np.testing.assert_array_equal(transform(x), expected(x))


def test_a_layer_comes_from_the_number_that_the_row_names():
    rules = (Rule("{layer}", "m/w", layers=(3, 1)),)
    files = InMemory({"1": _float(2), "3": _float(2, start=5)})
    params = assemble(
        check(rules, files.names(), {"m/w": jax.ShapeDtypeStruct((2, 2), np.float32)}), files
    )
    np.testing.assert_array_equal(params["m"]["w"], [[5, 6], [0, 1]])


def test_only_one_slice_is_read_at_a_time():
    reads = []
    files = _files()
    read = files.read
    files.read = lambda name: reads.append(name) or read(name)
    plan = check(ROWS, files.names(), _targets())
    assert not reads
    weight = next(weight for weight in plan.weights if weight.target == "m/stack/b")
    parts = weight.parts(files)
    assert not reads
    next(parts)
    assert reads == ["h.0.qb", "h.0.q"]


@pytest.mark.parametrize(
    ("files", "targets", "message"),
    [
        ({"extra": _float(1)}, {}, r"Only in the files \(1\): extra\. Only expected \(0\): none\."),
        (
            {"h.2.w": None, "embed.weight": None},
            {},
            r"Only in the files \(0\): none\. Only expected \(2\): embed\.weight, h\.2\.w\.",
        ),
        ({}, {"m__new": (2,)}, r"without a rule \(1\): m/new\."),
        ({}, {"m__gate": None}, r"Rules for weights that the model lacks \(1\): m/gate\."),
        (
            {"h.2.w": _float(6, 5)},
            {},
            r"1 weights .* h\.2\.w \(6, 5\): got shape \(5, 6\), expected \(4, 6\) for m/stack/w",
        ),
        (
            {"h.0.q": _float(7, 4)},
            {},
            r"h\.0\.q \(7, 4\): got no conversion .* expected \(4, 2, 3\) for m/stack/q",
        ),
        (
            {},
            {"m__stack__w": (3, 4, 6)},
            r"'m/stack/w' names 2 layers .* shape \(3, 4, 6\): expected 3",
        ),
        ({"h.0.w": _float(6, 4).astype(np.int8)}, {}, r"not floating point: h\.0\.w: int8"),
    ],
)
def test_what_does_not_fit_is_named_on_both_sides(files, targets, message):
    with pytest.raises(ConversionError, match=message):
        check(ROWS, _files(**files).names(), _targets(**targets))


def test_only_the_first_few_of_many_names_are_listed():
    with pytest.raises(
        ConversionError, match=r"Only in the files \(9\): x0, x1, x2, \.\.\.\. Only"
    ):
        check(ROWS, _files(**{f"x{i}": _float(1) for i in range(9)}).names(), _targets())


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (
            (*ROWS, Constant("m/table", np.zeros, "")),
            "1 weights of the model have several rules: m/table",
        ),
        ((*ROWS, Skip("h.0.w", "")), r"both read and skipped: h\.0\.w"),
    ],
)
def test_a_mapping_that_contradicts_itself_is_an_error(rules, message):
    with pytest.raises(ConversionError, match=message):
        check(rules, _files().names(), _targets())


@pytest.mark.parametrize(
    ("dtypes", "asked", "expected"),
    [
        ((BF16, BF16), None, BF16),
        ((BF16, np.float32), None, np.float32),
        ((np.float16, np.float16), None, np.float32),
        ((np.float64, np.float64), None, np.float32),
        ((np.float32, np.float32), "bfloat16", BF16),
    ],
)
def test_dtypes(dtypes, asked, expected):
    files = InMemory({f"{i}": _float(3).astype(dtype) for i, dtype in enumerate(dtypes)})
    targets = {path: jax.ShapeDtypeStruct((2, 3), np.float32) for path in ("m/w", "m/fill")}
    rules = (Rule("{layer}", "m/w"), Constant("m/fill", np.ones, ""))
    params = assemble(check(rules, files.names(), targets, dtype=asked), files)["m"]
    assert params["w"].dtype == params["fill"].dtype == expected
    np.testing.assert_array_equal(params["w"].astype(np.float32), [[0, 1, 2]] * 2)


def test_a_tower_moves_behind_prefixes():
    rules = mapping.with_prefixes(ROWS, source="a.b.", target="tower/")
    files = InMemory({f"a.b.{name}": array for name, array in FILES.items()})
    targets = {f"tower/{path}": leaf for path, leaf in _targets().items()}
    assert check(rules, files.names(), targets).skipped == {"a.b.mask": "a constant"}
    with pytest.raises(ConversionError, match="Only in the files"):
        check(rules, {f"axb.{name}": leaf for name, leaf in _files().names().items()}, targets)
