"""References as browsers resolve them, and the URLs that name the same file.

The rows are facts of the WHATWG URL Standard.
"""

import hypothesis
import hypothesis.strategies as st
import pytest

from data_pipelines.web.urls import resolve, same_url

BASE = "https://example.org/blog/post.html?page=1#top"
FILE = "file:///dir/page.html"


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("a.jpg", "https://example.org/blog/a.jpg"),
        (" \n a.jpg\t ", "https://example.org/blog/a.jpg"),
        ("im\nag\tes/a.jpg", "https://example.org/blog/images/a.jpg"),
        ("images\\a.jpg", "https://example.org/blog/images/a.jpg"),
        ("\\a.jpg", "https://example.org/a.jpg"),
        ("//cdn.example/a", "https://cdn.example/a"),
        ("\\\\cdn.example\\a", "https://cdn.example/a"),
        ("///cdn.example/a", "https://cdn.example/a"),
        ("https:a.jpg", "https://example.org/blog/a.jpg"),
        ("https:/a.jpg", "https://example.org/a.jpg"),
        ("https:///cdn.example/a", "https://cdn.example/a"),
        ("http:cdn.example/a", "http://cdn.example/a"),
        ("HTTPS://CDN.Example:443/A", "https://cdn.example/A"),
        ("http://cdn.example:443/", "http://cdn.example:443/"),
        ("../../../a.jpg", "https://example.org/a.jpg"),
        ("./x/../y/./a.jpg", "https://example.org/blog/y/a.jpg"),
        ("%2e%2E/a.jpg", "https://example.org/a.jpg"),
        ("/x/..", "https://example.org/"),
        ("", "https://example.org/blog/post.html?page=1"),
        ("#part", "https://example.org/blog/post.html?page=1"),
        ("?page=2#part", "https://example.org/blog/post.html?page=2"),
        ("a b'\".jpg?x='\" y", "https://example.org/blog/a%20b'%22.jpg?x=%27%22%20y"),
        ("a|[b].jpg%zz%41", "https://example.org/blog/a|[b].jpg%zz%41"),
        ("é.jpg?é", "https://example.org/blog/%C3%A9.jpg?%C3%A9"),
        ("//bücher.example/a", "https://xn--bcher-kva.example/a"),
        ("//BÜCHER.example", "https://xn--bcher-kva.example/"),
        ("//faß.example/", "https://xn--fa-hia.example/"),
        ("//日本語。例え/", "https://xn--wgv71a119e.xn--r8jz45g/"),
        ("//ex%41mple.org/", "https://example.org/"),
        ("//a_b.example/", "https://a_b.example/"),
        ("//127.1/", "https://127.0.0.1/"),
        ("//0x7f.0.0.01/", "https://127.0.0.1/"),
        ("//[::0:1]:8080/", "https://[::1]:8080/"),
        ("//user:pass@h.example/", "https://user:pass@h.example/"),
        ("//h.example:/", "https://h.example/"),
        ("mailto:x@y", "mailto:x@y"),
        ("data:image/png;base64,AA", "data:image/png;base64,AA"),
        ("javascript:a('b')", "javascript:a('b')"),
        ("x\ud800", "https://example.org/blog/x%EF%BF%BD"),
        *((bad, "") for bad in ("//", "//h:x/", "//h:99999/", "//a b/", "//[::1", "//1.2.3.256/")),
        *((bad, "") for bad in ("//a%00b/", "//a<b/", "//[fe80::1%25x]/", "//\ufdd0/", "//a:b:1/")),
    ],
)
def test_references_are_resolved_as_browsers_do(reference, expected):
    assert resolve(reference, BASE) == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ("a b.jpg", "file:///dir/a%20b.jpg"),
        ("../../a.jpg", "file:///a.jpg"),
        ("/a.jpg", "file:///a.jpg"),
        ("sub\\a.jpg", "file:///dir/sub/a.jpg"),
        ("C:\\pictures\\a.jpg", "c:\\pictures\\a.jpg"),
        ("file:///C|/pictures/a.jpg", "file:///C:/pictures/a.jpg"),
        ("file:///C:/../a.jpg", "file:///C:/a.jpg"),
        ("//localhost/a.jpg", "file:///a.jpg"),
        ("http://h.example", "http://h.example/"),
    ],
)
def test_references_of_pages_in_a_folder(reference, expected):
    assert resolve(reference, FILE) == expected


def test_without_a_base_only_whole_urls_are_resolved():
    assert resolve("https://h.example/a#b") == "https://h.example/a"
    assert resolve("a.jpg") == resolve("//h.example/") == resolve("a.jpg", "mailto:x") == ""


@pytest.mark.parametrize(
    ("charset", "expected"),
    [
        ("utf-8", "%E6%97%A5"),
        ("cp932", "%93%FA"),
        ("cp1252", "%26%2326085%3B"),  # as a form writes what its charset lacks
        ("utf-16-le", "%E6%97%A5"),
        ("replacement", "%E6%97%A5"),
    ],
)
def test_queries_are_in_the_charset_of_the_page_and_paths_are_not(charset, expected):
    assert resolve("/日?日", BASE, charset) == f"https://example.org/%E6%97%A5?{expected}"


@pytest.mark.parametrize(
    "other",
    [
        "http://example.org/~a/b%20c'd.jpg?x=(1)",
        "https://EXAMPLE.org:443/%7ea/b c%27d.jpg?x=(1)#f",
        "http://example.org:80/x/../~a\\b%20c'd.jpg?x=(1)",
        "\thttps://user:word@example.org/~a/b%20c%27d.jpg?x=(1)\n",
    ],
)
def test_urls_of_the_same_file(other):
    assert same_url(other) == "https://example.org/~a/b%20c%27d.jpg?x=(1)"


def test_escapes_that_mean_something_else_are_kept():
    assert same_url("https://h.example/a%2fb%3f?c%26d") == "https://h.example/a%2Fb%3F?c%26d"
    assert same_url("https://h.example/a?") == same_url("http://h.example/a")


@hypothesis.given(st.text(), st.sampled_from([BASE, FILE, ""]))
@hypothesis.example("//[", BASE)
@hypothesis.example("//xn--\x80", BASE)
def test_any_text_is_resolved_or_none(reference, base):
    found = resolve(reference, base)
    assert resolve(found) == found or not found
    assert isinstance(same_url(reference), str)
