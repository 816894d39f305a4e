"""Files of the Hub by name, from a stand-in server on the loopback."""

import pytest

from flamingo_jax.checkpoint import hub
from tests.hub import Repository, served

FILES = {"config.json": b"{}", "big.bin": bytes(range(256)) * 8000, "pictures/cat.png": b"cat"}
ALL = lambda names, read: [name for name in names if "/" not in name]


@pytest.fixture
def site(monkeypatch, tmp_path):
    with served(monkeypatch, tmp_path / "cache") as found:
        found.repositories["org/name"] = Repository(dict(FILES))
        yield found


def fetch(name="org/name", choose=ALL):
    return hub.fetch(hub.name_of(name), choose)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/name", hub.HubName("org/name")),
        ("org/name-1.5_b@v1", hub.HubName("org/name-1.5_b", "v1")),
        ("org/name@refs/pr/3:a.npz", hub.HubName("org/name", "refs/pr/3", "a.npz")),
        *((path, None) for path in ("/org/name", "./name", "../name", "~/name", "name", "a/b/c")),
        *((path, None) for path in ("gs://bucket/a", "org/", "org/name@", "org/na me", "org/.x")),
    ],
)
def test_what_is_a_name(text, expected):
    assert hub.name_of(text) == expected
    assert expected is None or str(expected) == text


def test_a_path_that_exists_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub.name_of("org/name") is None and hub.name_of("org/other") is not None


def test_only_what_is_chosen_is_fetched_and_only_once(site):
    folder = fetch()
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        name: content for name, content in FILES.items() if "/" not in name
    }
    commit = site.repositories["org/name"].commit
    assert folder.name == commit and site.fetched() == ["big.bin", "config.json"]
    assert fetch("org/name@v1") == folder == fetch(f"org/name@{commit}")
    assert site.fetched() == ["big.bin", "config.json"]


def test_a_file_can_be_read_before_the_others_are_chosen(site):
    def choose(names, read):
        assert read("config.json").read_text() == "{}"
        return ["pictures/cat.png"]

    assert (fetch(choose=choose) / "pictures" / "cat.png").read_bytes() == b"cat"


def test_a_download_goes_on_where_it_broke(site, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)  # bytes that are kept at once
    site.repositories["org/name"].breaks_after = 1_000_000
    try:
        folder = fetch()  # huggingface_hub may try again by itself
    except hub.HubError as error:
        assert "Run it again" in str(error)
        folder = fetch()
    assert (folder / "big.bin").read_bytes() == FILES["big.bin"]
    (resumed,) = (line for line in site.fetched() if " from " in line)
    assert int(resumed.split()[-1]) > 0


def test_without_a_network_the_cache_is_used(site, monkeypatch, caplog):
    from huggingface_hub import constants

    folder = fetch()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch() == folder == fetch(f"org/name@{site.repositories['org/name'].commit}")
    assert "the files of the cache are used" in caplog.text
    with pytest.raises(hub.HubError, match=r"1 files, such as pictures/cat.png, are not in the"):
        fetch(choose=lambda names, read: ["pictures/cat.png"])
    with pytest.raises(hub.HubError, match=r"cannot be reached .*; it is not in the cache .*OFFLI"):
        fetch("org/other")


def test_no_server_at_all(site):
    site.close()
    with pytest.raises(hub.HubError, match="no file or directory 'org/name' here, and the repo"):
        fetch()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("org/other", {}, "no repository org/other at http.* that you may read"),
        ("org/name@v2", {}, "has no revision 'v2'. Give a branch, a tag or a commit"),
        ("org/name", {"is_gated": True}, "is gated: its owner has not let you in. Ask for access"),
        ("org/name", {"status": 403}, "answers with status 403: .*. Log in with `hf auth login`"),
        ("org/name", {"status": 401}, "answers with status 401: .*. Log in with `hf auth login`"),
        ("org/name", {"status": 404}, "no repository org/name|status 404"),
        ("org/name", {"withheld": ("config.json",)}, "A file of org/name .* cannot be fetched"),
    ],
    ids=["no repository", "no revision", "gated", "403", "401", "404", "no file"],
)
def test_what_cannot_be_had_is_one_line_that_says_what_to_do(site, name, change, message):
    site.repositories["org/name"] = Repository(dict(FILES), **change)
    with pytest.raises(hub.HubError, match=message) as error:
        fetch(name)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_listed(site):
    with pytest.raises(hub.HubError, match=r"has no file 'a.npz'; it has big.bin, config.json"):
        fetch(choose=lambda names, read: ["a.npz"])
