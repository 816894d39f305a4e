"""A directory in the place of another."""

import pytest

from flamingo_jax.checkpoint.moves import move_directory
from flamingo_jax.core import paths
from flamingo_jax.core.paths import PathError


@pytest.mark.parametrize("old", [True, False])
def test_move_directory_replaces_what_was_there(tmp_path, old):
    source, target = tmp_path / "source", tmp_path / "target"
    paths.write_atomically(source / "new", "1")
    if old:
        paths.write_atomically(target / "old", "1")
    move_directory(source, target)
    assert [p.name for p in target.iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["target"]


def test_a_failing_move_keeps_the_old_directory(tmp_path):
    paths.write_atomically(tmp_path / "target" / "old", "1")
    with pytest.raises(PathError, match=r"Cannot move .*nothing"):
        move_directory(tmp_path / "nothing", tmp_path / "target")
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["old"]


def test_a_move_over_a_link_keeps_what_it_names(tmp_path):
    paths.write_atomically(tmp_path / "elsewhere" / "old", "1")
    paths.write_atomically(tmp_path / "source" / "new", "1")
    (tmp_path / "target").symlink_to(tmp_path / "elsewhere")
    move_directory(tmp_path / "source", tmp_path / "target")
    assert [p.name for p in (tmp_path / "target").iterdir()] == ["new"]
    assert (tmp_path / "elsewhere" / "old").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "target"]
