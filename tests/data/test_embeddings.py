"""Saved embeddings are read as they were written, in parts of any size, and by plain numpy too."""

import numpy as np
import pytest

from flamingo_jax.data.embeddings import ARRAY, KEYS, Embeddings, writing

ROWS = np.random.default_rng(0).standard_normal((10, 4)).astype(np.float32)
NAMES = [f"{row // 2}/{row % 2}" for row in range(10)]


def write(directory, sizes=(3, 0, 7)):
    with writing(directory, 4) as writer:
        start = 0
        for size in sizes:
            writer.add(NAMES[start : start + size], ROWS[start : start + size])
            start += size
    return directory


@pytest.mark.parametrize("size", [1, 3, 10, 99])
def test_rows_come_back_in_parts(size, tmp_path):
    found = Embeddings(write(tmp_path / "new" / "place"))
    keys, rows = zip(*found.chunks(size), strict=True)
    assert [key for part in keys for key in part] == NAMES
    np.testing.assert_array_equal(np.concatenate(rows), ROWS)
    assert max(map(len, rows)) == min(size, 10)
    assert (len(found), found.width) == (10, 4)
    np.testing.assert_array_equal(np.load(tmp_path / "new" / "place" / ARRAY), ROWS)
    assert sorted(path.name for path in (tmp_path / "new" / "place").iterdir()) == [ARRAY, KEYS]


def test_rows_are_mapped_not_read(tmp_path):
    assert isinstance(Embeddings(write(tmp_path)).rows, np.memmap)


def test_no_rows(tmp_path):
    assert list(Embeddings(write(tmp_path, sizes=())).chunks(5)) == []


def test_an_interrupted_write_leaves_what_was_there(tmp_path):
    write(tmp_path)
    with pytest.raises(OSError, match="gone"), writing(tmp_path, 4) as writer:
        writer.add(NAMES[:1], ROWS[:1])
        raise OSError("gone")
    assert len(Embeddings(tmp_path)) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == [ARRAY, KEYS]


@pytest.mark.parametrize(
    ("keys", "rows", "message"),
    [
        (["a"], ROWS[:2], r"1 keys with rows of shape \(2, 4\), expected \(1, 4\)"),
        (["a"], ROWS[:1, :3], r"expected \(1, 4\)"),
        (["a\nb"], ROWS[:1], "not one line"),
        ([""], ROWS[:1], "not one line"),
        (["a"], np.full((1, 4), np.nan, np.float32), "not finite"),
    ],
)
def test_bad_rows_are_refused(keys, rows, message, tmp_path):
    with pytest.raises(ValueError, match=message), writing(tmp_path, 4) as writer:
        writer.add(keys, rows)


def test_missing_and_damaged_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="--task=embed"):
        Embeddings(tmp_path)
    write(tmp_path)
    (tmp_path / KEYS).write_text("\n".join(NAMES[:9]) + "\n")
    with pytest.raises(ValueError, match=r"keys\.txt has 9 lines, expected 10"):
        list(Embeddings(tmp_path).chunks(4))
    (tmp_path / KEYS).write_text("\n".join([*NAMES, "more"]) + "\n")
    with pytest.raises(ValueError, match="more than 10 lines"):
        list(Embeddings(tmp_path).chunks(4))
    data = (tmp_path / ARRAY).read_bytes()
    (tmp_path / ARRAY).write_bytes(data[:-8])
    with pytest.raises(ValueError, match="cut off or damaged"):
        Embeddings(tmp_path)
    np.save(tmp_path / ARRAY, ROWS.astype(np.float64))
    with pytest.raises(ValueError, match=r"float64\[10, 4\], expected float32\[n, E\]"):
        Embeddings(tmp_path)
