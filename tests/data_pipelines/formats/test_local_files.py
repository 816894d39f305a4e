"""Names and URLs from data lead only to the file that they mean, and only inside the folder."""

import hashlib
import unicodedata

import pytest
from etils import epath

from data_pipelines.formats.local_files import inside, local_image, page_image, read_inside
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


@pytest.mark.parametrize(
    ("stored", "name"),
    [
        ("IMG_1.JPG", "IMG_1.jpg"),
        ("a/b.jpg", "a\\b.jpg"),
        ("my dog.jpg", "my%20dog.jpg"),
        (unicodedata.normalize("NFD", "Bär.jpg"), unicodedata.normalize("NFC", "Bär.jpg")),
        (unicodedata.normalize("NFC", "Bär.jpg"), unicodedata.normalize("NFD", "Bär.jpg")),
        ("[1], 100%.v2.jpg", "[1], 100%.v2.jpg"),
    ],
)
def test_names_as_other_systems_write_them(tmp_path, stored, name):
    (tmp_path / stored).parent.mkdir(exist_ok=True)
    (tmp_path / stored).write_bytes(b"image")
    assert read_inside(epath.Path(tmp_path), name, max_bytes=9, missing="none") == b"image"


URL = "https://example.org/dir/my%20dog.jpg?size=2"
HASH = hashlib.sha256(URL.encode()).hexdigest()


@pytest.mark.parametrize(
    "name",
    [
        HASH,
        f"{HASH}.webp",
        "example.org/dir/my dog.jpg",
        "example.org/dir/my dog.jpg?size=2",
        "example.org/dir/my%20dog.jpg",
        "dir/my dog.jpg",
    ],
)
def test_image_in_a_folder(name, tmp_path):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"found")
    assert local_image(epath.Path(tmp_path), URL, 99) == b"found"
    assert local_image(epath.Path(tmp_path), "https://example.org/other.jpg", 99) is None
    assert local_image(epath.Path(tmp_path), URL, 2) == b"fou"


def test_the_picture_of_another_page_is_not_taken(tmp_path):
    """No image is found by its bare name, nor by a path that many queries share."""
    for name in ("logo.jpg", "photo.php"):
        (tmp_path / name).write_bytes(b"of another page")
    for url in (
        "https://a.org/x/logo.jpg",
        "https://b.org/y/logo.jpg",
        "https://a.org/photo.php?i=1",
    ):
        assert local_image(epath.Path(tmp_path), url, 99) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/../secret.jpg",
        "https://example.org/%2e%2e/secret.jpg",
        "https://example.org/..%2fsecret.jpg",
        "https://../secret.jpg",
        "file:///../secret.jpg",
        "https://example.org/..%5csecret.jpg",
        "https://example.org/%00secret.jpg",
        "https://example.org/" + "x" * 5000,
        "http://[::1",
        "https://example.org/",
        "",
    ],
)
def test_nothing_outside_of_the_folder_is_read(url, tmp_path):
    (tmp_path / "images" / "example.org").mkdir(parents=True)
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    assert local_image(epath.Path(tmp_path / "images"), url, 99) is None
    assert page_image(epath.Path(tmp_path / "images"), epath.Path(tmp_path), url, 99) is None


def test_images_of_a_page_in_one_of_two_folders(tmp_path):
    """/x.jpg is of the page's folder; ../b/x.jpg would be of the other one."""
    root, base = epath.Path(tmp_path / "a"), epath.Path(tmp_path)
    for name in ("a/x.jpg", "b/y.jpg", "z.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    assert page_image(root, base, "file:///a/x.jpg", 99) == b"a/x.jpg"
    assert page_image(root, base, "file:///x.jpg", 99) == b"a/x.jpg"
    assert page_image(root, base, "file:///b/y.jpg", 99) is None
    assert page_image(root, base, "file:///z.jpg", 99) is None
    assert page_image(root, base, "https://a.org/x.jpg", 99) is None
