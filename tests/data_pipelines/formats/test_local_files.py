"""Names from data lead only to files in the folder."""

import pytest
from etils import epath

from data_pipelines.formats.local_files import inside, read_inside
from data_pipelines.page import Reject


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "1.jpg").write_bytes(b"image")
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "images2").mkdir()
    return epath.Path(tmp_path / "images")


@pytest.mark.parametrize("name", ["a/1.jpg", "./a/1.jpg", "a/../a/1.jpg", "b/../a/1.jpg"])
def test_files_of_the_folder_are_read(folder, name):
    assert read_inside(folder, name, max_bytes=5, missing="missing_image") == b"image"
    absolute = str(folder / "a" / "1.jpg")
    assert read_inside(folder, absolute, max_bytes=5, missing="missing_image") == b"image"


@pytest.mark.parametrize(
    "name", ["../secret", "a/../../secret", "/etc/passwd", "", ".", "..", "../images2", "a\0b"]
)
def test_other_places_are_refused(folder, name):
    found = read_inside(folder, name, max_bytes=100, missing="missing_image")
    assert isinstance(found, Reject)
    assert (found.reason, found.broken) == ("path_traversal", True)


@pytest.mark.parametrize("name", ["b.jpg", "a", "x" * 5000, "\udcff.jpg"])
def test_files_that_do_not_exist_are_missing(folder, name):
    found = read_inside(folder, name, max_bytes=100, missing="missing_video")
    assert (found.reason, found.broken) == ("missing_video", True)


def test_large_files_are_left_out(folder):
    found = read_inside(folder, "a/1.jpg", max_bytes=4, missing="missing_image")
    assert found.reason == "file_too_large"


@pytest.mark.parametrize("root", ["gs://bucket/images", "gs://bucket/images/"])
def test_folders_may_be_in_a_bucket(root):
    assert str(inside(epath.Path(root), "a/1.jpg")) == "gs://bucket/images/a/1.jpg"
    assert isinstance(inside(epath.Path(root), "../other/1.jpg"), Reject)
