"""What --input names: literal paths, patterns, suffixes without case, what is passed over.

Also where a page is, and when a request is another one because files have changed.
"""

import os
import unicodedata

import pytest
from etils import epath

from data_pipelines import run
from data_pipelines.inputs import identity, input_files, page_folders
from data_pipelines.pairs import PairsRequest
from flamingo_jax.data.files import files_below, image_files

WARC = (".warc",)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)


def found(pattern, suffixes=WARC, companions=()):
    return [str(path) for path in input_files(pattern, suffixes, companions)]


def test_input_is_a_file_a_directory_or_a_pattern(tmp_path):
    for name in ("b.warc", "a.warc", "deep/c.warc", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    names = ["a.warc", "b.warc", "deep/c.warc"]
    assert input_files(str(tmp_path), (".warc",)) == [str(tmp_path / name) for name in names]
    assert input_files(f"{tmp_path}/*.warc", (".warc",)) == [
        str(tmp_path / name) for name in names[:2]
    ]
    assert input_files(f"{tmp_path}/b.warc,{tmp_path}/notes.txt", (".warc",)) == [
        str(tmp_path / "b.warc"),
        str(tmp_path / "notes.txt"),
    ]
    assert len(list(files_below(epath.Path(tmp_path)))) == 4
    for missing in ("", str(tmp_path / "nowhere"), f"{tmp_path}/*.gz"):
        with pytest.raises(ValueError, match="--input"):
            input_files(missing, (".warc",))


@pytest.mark.parametrize(
    "name", ["set[1].warc", "a,b.warc", "what?.warc", "[x]/1.warc", "a,b,c/d,e.warc", "ä/ö.warc"]
)
def test_a_path_that_exists_is_literal(folder, name):
    write(folder, name, "1.warc", "x/1.warc", "other.warc")
    assert found(name) == [name]
    assert found(f"{name},other.warc") == sorted([name, "other.warc"])
    assert found(os.path.dirname(name) or ".")[-1:] != []


def test_patterns_in_any_component(folder):
    write(folder, "a/1.warc", "b/1.warc", "b/c/2.warc", "[x]/3.warc", "b/.hidden.warc")
    assert found("*/1.warc") == ["a/1.warc", "b/1.warc"]
    assert found("**/*.warc") == ["[x]/3.warc", "a/1.warc", "b/1.warc", "b/c/2.warc"]
    assert found("[x]/*.warc") == ["[x]/3.warc"]
    assert found("[ab]") == ["a/1.warc", "b/1.warc", "b/c/2.warc"]
    assert len(found(f"{folder}/b/../b,b/1.warc,./a,a")) == 3  # no file twice


def test_names_of_macos_are_found(folder):
    """The names of files are in NFD on macOS, those that people type in NFC."""
    name = "Bär/ö.warc"
    write(folder, unicodedata.normalize("NFD", name))
    for form in ("NFC", "NFD"):
        given = unicodedata.normalize(form, name)
        for pattern in (given, os.path.dirname(given), given.replace(".warc", "*")):
            assert [os.path.basename(path) for path in found(pattern)] == [
                unicodedata.normalize("NFD", "ö.warc")
            ]


def test_suffixes_without_case_and_what_is_passed_over(folder):
    write(folder, "a.warc", "B.WARC", "c.csv", "d.CSV", "e.tar.bz2", "none", "pic.JPG")
    write(folder, "._a.warc", ".DS_Store", "__MACOSX/._b.warc", "__MACOSX/x.warc")
    files = input_files(".", WARC, (".jpg",))
    assert files == ["B.WARC", "a.warc"]
    assert files.passed_over == {
        "._*": 2,
        ".csv": 2,
        ".DS_Store": 1,
        ".tar.bz2": 1,
        ".warc": 1,
        "(no suffix)": 1,
    }
    assert input_files("*.csv,a.warc", WARC).passed_over == {}
    assert input_files("?.*", WARC) == ["B.WARC", "a.warc"]
    with pytest.raises(ValueError, match=r"no file ending in .zip below it .there are 3 .warc, "):
        input_files(".", (".zip",))


def test_a_link_to_the_folder_above_and_a_pipe_do_no_harm(folder):
    write(folder, "a/1.warc")
    (folder / "a" / "up").symlink_to(folder)
    (folder / "a" / "gone.warc").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "a" / "pipe.warc")
    assert found(".") == ["a/1.warc", "a/gone.warc"]
    assert identity(".")


def test_images_of_a_folder_without_clutter(folder):
    write(folder, "IMG_1.JPG", "._IMG_1.JPG", "__MACOSX/2.jpg", "a/3.tiff", ".cache/4.png")
    assert [file.name for file in image_files(folder)] == ["IMG_1.JPG", "3.tiff"]


def test_pages_of_two_folders_have_different_names(folder):
    write(folder, "crawl/a/index.html", "crawl/b/index.html", "crawl/b/c/index.html")
    for pattern, roots in [
        ("crawl/a,crawl/b", ("crawl/a", "crawl/b", "crawl/b")),
        ("crawl/*", ("crawl/a", "crawl/b", "crawl/b")),
        ("crawl", ("crawl", "crawl", "crawl")),
        ("crawl/**/index.html", ("crawl", "crawl", "crawl")),
    ]:
        places = [page_folders(pattern, path) for path in sorted(input_files(pattern, (".html",)))]
        assert [place.root for place in places] == [epath.Path(folder / root) for root in roots]
        assert [place.name for place in places] == [
            "a/index.html",
            "b/c/index.html",
            "b/index.html",
        ]
    assert page_folders("crawl/a/index.html", "crawl/a/index.html").name == "index.html"


def test_changed_files_are_another_request(folder):
    write(folder, "in/a.warc", "in/b/1.warc", "in/c/1.warc")
    states = [identity("in")]

    def changed() -> bool:
        states.append(identity("in"))
        return states[-1] != states[-2]

    assert not changed()
    write(folder, "in/d.warc")
    assert changed()
    (folder / "in/a.warc").write_text("IN/a.warc")  # of the same size
    os.utime(folder / "in/a.warc", ns=(1, 1))
    assert changed()
    (folder / "in/b/1.warc").rename(folder / "in/b/2.warc")
    assert changed()
    write(folder, "in/.DS_Store")
    assert not changed()
    write(folder, "in/out/x")
    assert identity("in", without="in/out") == states[-1]


def test_more_images_are_another_request(folder, monkeypatch):
    """Images in --images, and images next to a table, decide the output too."""
    write(folder, "in/t.csv", "images/1.jpg", "in/1.jpg")
    made = []

    def build(request, output, how):
        (output / "made").write_text("x")
        made.append(request)
        return {}

    fake = run.Pipeline(PairsRequest, build)
    monkeypatch.setitem(run.PIPELINES, "pairs", fake)
    for request, image in [
        (PairsRequest("in/t.csv", "table", images="images"), "images/2.jpg"),
        (PairsRequest("in/t.csv", "table"), "in/2.jpg"),
    ]:
        output = f"out{len(made)}"
        assert run.make("pairs", request, output, None or run.Execution())
        assert not run.make("pairs", request, output, run.Execution())
        write(folder, image)
        with pytest.raises(ValueError, match=r"another request \(request\.files\..*are others"):
            run.make("pairs", request, output, run.Execution())
