"""The language filter: the language of a text, not the one that its page states."""

import pytest

pytest.importorskip("warcio")

from data_pipelines.page import Page, Reject
from data_pipelines.web.language import check_languages, of_language
from tests.data_pipelines import crawl

GERMAN = (
    "Der alte Hafen der Stadt liegt zwischen zwei Hügeln, und die Boote kommen mit der Flut vor "
    "dem Morgengrauen herein."
)
JAPANESE = "古い港は二つの丘の間にあります。"


def page(text, language=""):
    return Page("https://example.org/", (text,), language)


@pytest.mark.parametrize(
    ("text", "found"), [(crawl.prose(0), "en"), (GERMAN, "de"), (JAPANESE, "ja")]
)
def test_language_is_that_of_the_text(text, found):
    assert of_language(page(text, "xx"), (found,)) == page(text, found)
    others = {"en", "de", "ja"} - {found}
    reject = of_language(page(text, "en"), others)
    assert isinstance(reject, Reject)
    assert (reject.reason, reject.broken) == ("language", False)
    assert f"is {found} with" in reject.detail


def test_all_languages_are_kept_without_a_list():
    assert of_language(page(GERMAN, "xx"), ()) == page(GERMAN, "xx")


def test_probability_at_the_threshold():
    assert of_language(page(crawl.prose(0)), ("en",), 0.9).language == "en"
    assert of_language(page(crawl.prose(0)), ("en",), 1.0).reason == "language"


@pytest.mark.parametrize("text", ["", " ", "12 34 56", "\x00", "🙂" * 9, "a" * 100_000])
def test_text_without_a_language_is_no_error(text):
    assert of_language(page(text), ("en",), 0.999).reason == "language"


def test_unknown_language_is_an_error():
    message = r"Unknown languages klingon: expected ISO 639-1 codes of .*\bde\b.*\ben\b"
    with pytest.raises(ValueError, match=message):
        check_languages(("en", "klingon"))
    with pytest.raises(ValueError, match="klingon"):
        of_language(page("x"), ("klingon",))
