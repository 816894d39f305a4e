"""The restricted reader of pickled trees: it reads arrays, and runs no code of a file."""

import collections
import os
import pickle
import types

import haiku as hk
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.conversion.files.pickled_tree import read_tree
from flamingo_jax.conversion.reading import ConversionError

TREE = {
    "NFNet/~/stem_conv0": {
        "w": np.arange(12, dtype=np.float32).reshape(3, 4),
        "bias": np.array([1.5, -2.0], np.float32),
    },
    "NFNet/~/nf_block": {"skip_gain": np.float32(0.25)},
}


def _file(tmp_path, content):
    path = tmp_path / "F0_haiku.npz"
    path.write_bytes(content)
    return path


def _same(got, want):
    assert {module: set(arrays) for module, arrays in got.items()} == {
        module: set(arrays) for module, arrays in want.items()
    }
    for module, arrays in want.items():
        for name, array in arrays.items():
            assert got[module][name].dtype == np.asarray(array).dtype
            np.testing.assert_array_equal(got[module][name], array)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_reads_what_pickle_wrote_in_any_protocol(tmp_path, protocol):
    _same(read_tree(_file(tmp_path, pickle.dumps(TREE, protocol))), TREE)


def test_reads_what_an_older_numpy_wrote(tmp_path):
    content = pickle.dumps(TREE, 2)
    assert b"cnumpy._core.multiarray\n" in content
    _same(
        read_tree(
            _file(tmp_path, content.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
        ),
        TREE,
    )


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tree: {"params": tree, "state": {}},
        collections.OrderedDict,
        hk.data_structures.to_immutable_dict,
        lambda tree: {
            m: {n: jnp.asarray(a) for n, a in arrays.items()} for m, arrays in tree.items()
        },
        lambda tree: {
            m: {n: np.asfortranarray(a) for n, a in arrays.items()} for m, arrays in tree.items()
        },
        lambda tree: {
            m: {n: np.asarray(a).astype(">f4") for n, a in arrays.items()}
            for m, arrays in tree.items()
        },
    ],
    ids=[
        "inside params",
        "OrderedDict",
        "FlatMapping",
        "jax arrays",
        "Fortran order",
        "big endian",
    ],
)
def test_reads_trees_in_other_clothes(tmp_path, wrap):
    got = read_tree(_file(tmp_path, pickle.dumps(wrap(TREE))))
    _same(
        {m: {n: a.astype(np.float32) for n, a in arrays.items()} for m, arrays in got.items()}, TREE
    )


def test_reads_how_dill_names_the_class_dtype(tmp_path):
    """Dill writes dtype('float32') as the call _create_dtypemeta(None)('f4', ...)."""
    content = pickle.dumps(TREE, 2)
    assert b"cnumpy\ndtype\n" in content
    called = content.replace(b"cnumpy\ndtype\n", b"cdill._dill\n_create_dtypemeta\n(NtR")
    _same(read_tree(_file(tmp_path, called)), TREE)


class _Malicious:
    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (os.system, f"{os.name}.system"),
        (eval, "builtins.eval"),
        (types.FunctionType, "builtins.function"),
        (np.load, "numpy.load"),
        (getattr, "builtins.getattr"),
    ],
)
def test_a_malicious_pickle_is_refused_and_nothing_ran(tmp_path, function, named):
    canary = tmp_path / "canary"
    arguments = {
        os.system: f"touch {canary}",
        eval: f"__import__('pathlib').Path({str(canary)!r}).touch()",
    }.get(function, "x")
    content = (
        pickle.dumps({"NFNet/~/a": {"w": _Malicious(function, arguments)}})
        if function is not types.FunctionType
        else None
    )
    content = content or b"cbuiltins\nfunction\n(tR."
    with pytest.raises(ConversionError, match=f"calls upon {named}") as error:
        read_tree(_file(tmp_path, content))
    assert "F0_haiku.npz" in str(error.value)
    assert not canary.exists()
    if function in (os.system, eval):
        pickle.loads(content)  # the standard library runs the refused code
        assert canary.exists()


def test_no_known_name_leads_further(tmp_path):
    """In protocol 4 a name may be a path of attributes."""
    content = b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93."
    with pytest.raises(ConversionError, match=r"numpy\.ndarray\.__reduce__"):
        read_tree(_file(tmp_path, content))


def test_arrays_of_objects_are_refused(tmp_path):
    content = pickle.dumps({"a": {"w": np.array([None], object)}})
    with pytest.raises(ConversionError, match="it holds arrays of 'O8'; expected numbers"):
        read_tree(_file(tmp_path, content))


@pytest.mark.parametrize("length", [0, 1, 30, 200, -1])
def test_a_truncated_file_is_an_error(tmp_path, length):
    content = pickle.dumps(TREE)[:length]
    with pytest.raises(ConversionError, match="damaged or cut off"):
        read_tree(_file(tmp_path, content))


def test_a_reference_to_the_outside_is_refused(tmp_path):
    with pytest.raises(ConversionError, match="outside of it, 'elsewhere'"):
        read_tree(_file(tmp_path, b"Pelsewhere\n."))


@pytest.mark.parametrize(
    "content", [{}, [1, 2], {"a": 3}, {"a": {}}, {"a": {"b": {"c": np.zeros(1)}}}]
)
def test_another_thing_than_a_tree_is_an_error(tmp_path, content):
    with pytest.raises(ConversionError, match="no tree of arrays"):
        read_tree(_file(tmp_path, pickle.dumps(content)))


def test_a_missing_file_is_an_error(tmp_path):
    with pytest.raises(ConversionError, match="There is nothing at"):
        read_tree(tmp_path / "F0.npz")
