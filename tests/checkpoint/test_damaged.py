"""What is damaged is kept, whatever has its name already."""

import errno
import os

import pytest

from flamingo_jax.checkpoint import damaged
from flamingo_jax.core import paths
from flamingo_jax.core.paths import PathError


def test_each_gets_a_name_of_its_own(tmp_path):
    (tmp_path / "damaged").mkdir()
    names = ["4", *(f"4-{number}" for number in range(2, 1001))]
    for name in names[:-1]:
        (tmp_path / "damaged" / name).touch()
    (tmp_path / "damaged" / names[-1]).symlink_to("/nothing")
    (tmp_path / "4").write_text("a")
    kept = damaged.set_aside(tmp_path / "4", tmp_path)
    assert kept.name == "4-1001" and kept.read_text() == "a"
    assert len(list((tmp_path / "damaged").iterdir())) == 1001


@pytest.fixture
def two_file_systems(tmp_path, monkeypatch):
    """A workdir of which checkpoints/ is a link to another file system, as os.rename sees it."""
    workdir, other = tmp_path / "work", tmp_path / "other"
    workdir.mkdir()
    (other / "4").mkdir(parents=True)
    (other / "4" / "a").write_text("kept")
    (workdir / "checkpoints").symlink_to(other)
    rename, disk = os.rename, lambda path: str(path).startswith(str(workdir / "checkpoints"))

    def checked(source, target, **options):
        if disk(source) != disk(target):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        rename(source, target, **options)

    for name in ("rename", "replace"):
        monkeypatch.setattr(os, name, checked)
    return workdir


def test_damage_on_another_file_system_stays_there(two_file_systems):
    workdir = two_file_systems
    assert damaged.set_aside(workdir / "checkpoints" / "4", workdir) == paths.Path(
        workdir / "checkpoints" / "damaged" / "4"
    )
    (workdir / "checkpoints" / "4").mkdir()
    assert damaged.set_aside(workdir / "checkpoints" / "4", workdir).name == "4-2"
    assert (workdir / "checkpoints" / "damaged" / "4" / "a").read_text() == "kept"


def test_damage_that_cannot_be_moved_is_one_line(two_file_systems):
    workdir = two_file_systems
    (workdir / "checkpoints" / "damaged").write_text("a file")
    with pytest.raises(PathError, match=r"^Cannot m[^\n]*damaged[^\n]*$"):
        damaged.set_aside(workdir / "checkpoints" / "4", workdir)
    assert (workdir / "checkpoints" / "4" / "a").read_text() == "kept"
