"""Which URLs and texts count as equal, and which strings are removed from texts."""

import hypothesis
import hypothesis.strategies as st
import pytest

from data_pipelines.keys import text_key, url_key
from data_pipelines.marker_removal import without_markers
from data_pipelines.web.urls import same_url
from flamingo_jax.tokenizers.markers import EOC, IMAGE_TAG


@pytest.mark.parametrize(
    "other",
    [
        "http://example.org/a%20b?q=1",
        "https://EXAMPLE.org/a b?q=1",
        "https://example.org:443/a%20b?q=1#part",
        "http://example.org:80/a b?q=1",
        "https://user:word@example.org/a b?q=1",
        " https://example.org/a b?q=1 ",
    ],
)
def test_one_url_in_many_forms(other):
    assert url_key(other) == "url:https://example.org/a%20b?q=1"


@pytest.mark.parametrize(
    "other",
    [
        "https://example.org/a?q=2",
        "https://example.org/A?q=1",
        "https://example.org/a",
        "https://example.org:8443/a?q=1",
        "https://www.example.org/a?q=1",
    ],
)
def test_different_urls_stay_different(other):
    assert url_key(other) != url_key("https://example.org/a?q=1")


def test_host_without_path():
    for url in ("http://example.org", "https://example.org/"):
        assert same_url(url) == "https://example.org/"


def test_what_is_no_url():
    assert url_key("") == ""
    assert text_key(" \n") == ""
    assert same_url("http://[::1#x") == "http://[::1"


def test_case_and_white_space_make_no_other_text():
    assert text_key("A  cat\nsat.") == text_key("a cat sat. ") != text_key("a cat sat")


@hypothesis.given(st.text(), st.text())
def test_any_text_has_keys(first, second):
    assert text_key(first).startswith("text:") or not first.split()
    assert (text_key(first) == text_key(second)) == (
        first.lower().split() == second.lower().split()
    )
    url_key(first), url_key(f"http://{first}/{second}")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an <image> here", "an image here"),
        ("<EOC>", "EOC"),
        ("<<image>>", "image"),
        ("<<EOC<image>>>", "<<EOCimage"),
        ("a < b > c <Image> <image", "a < b > c <Image> <image"),
    ],
)
def test_markers_lose_their_brackets(text, expected):
    assert without_markers(text) == expected


@hypothesis.given(
    st.lists(st.sampled_from(["<", ">", "image", "EOC", "<image>", "<EOC>", " ", "x"])).map("".join)
)
def test_no_marker_is_left(text):
    cleaned = without_markers(text)
    assert IMAGE_TAG not in cleaned
    assert EOC not in cleaned
    assert cleaned.replace("<", "").replace(">", "") == text.replace("<", "").replace(">", "")
