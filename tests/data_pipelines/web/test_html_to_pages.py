"""HTML to texts and images: their order, boilerplate, and the image that an <img> refers to."""

import base64
import itertools
import sys

import hypothesis
import hypothesis.strategies as st
import pytest

pytest.importorskip("warcio")
pytest.importorskip("selectolax")

from data_pipelines.page import Page, Picture, Reject
from data_pipelines.web.html_decode import HtmlLimits
from data_pipelines.web.html_to_pages import html_to_page
from tests.data_pipelines import crawl

URL = "https://example.org/blog/post.html"


def parts(html, url=URL):
    """Returns the parts of a page. A picture is [last component of its URL]."""
    page = html_to_page(html.encode(), url)
    assert isinstance(page, Page), page
    name = lambda picture: picture.source.rpartition("/")[2]
    return [part if isinstance(part, str) else [name(part)] for part in page.parts]


def sources(html):
    page = html_to_page(f"<p>Some text.</p>{html}".encode(), URL)
    return [picture.source for picture in page.pictures]


def text(html):
    return html_to_page(html.encode(), URL).text


def test_texts_and_images_come_in_document_order():
    html = crawl.article(
        "A day",
        [
            "<p>First.</p>",
            '<figure><img src="1.jpg"><figcaption>Caption of one.</figcaption></figure>',
            '<p>Before <img src="2.jpg"> after.</p>',
            '<div><div><img src="3.jpg"></div></div><img src="4.jpg">',
            "<p>Last.</p>",
        ],
    )
    assert parts(html) == [
        "A day\n\nFirst.",
        ["1.jpg"],
        "Caption of one.\n\nBefore",
        ["2.jpg"],
        "after.",
        ["3.jpg"],
        ["4.jpg"],
        "Last.",
    ]


def test_adjacent_texts_are_one_part():
    assert parts("<p>One.</p><div>Two.</div>Three.<p>Four <b>bold</b>, <i>five</i>.</p>") == [
        "One.\n\nTwo.\nThree.\n\nFour bold, five."
    ]


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("<p>a\n  b\t c&nbsp;d</p>", "a b c d"),
        ("<p>un<b>believ</b>able <i> x</i></p>", "unbelievable x"),
        ("<p>a<br>b<br/><br>c</p>", "a\nb\nc"),
        ("<p>a</p><p></p><p> </p><p>b</p>", "a\n\nb"),
        ("<ul><li>one</li><li>two <b>x</b></li></ul>", "- one\n- two x"),
        ("<ul><li><p>one</p></li><li></li><li>two</ul>z", "- one\n\n- two\n\nz"),
        ("<ol><li>a<li>b<ul><li>c</ul><li>d</ol>", "1. a\n2. b\n\n- c\n\n3. d"),
        ("<ul><li><img src=x.jpg></li></ul><p>after</p>", "after"),
        (
            "<pre>def f():\n    return <b>1</b>\n\nf()</pre><p>x</p>",
            "def f():\n    return 1\n\nf()\n\nx",
        ),
        ("<table><tr><th>A<th>B<tr><td>1<td><b>2</b></table>", "A | B\n1 | 2"),
        ("<table><tr><td><p>x</p><p>y</p></td></tr></table>", "x\n\ny"),
        ("<h2>Head</h2>text<blockquote>said</blockquote>", "Head\n\ntext\n\nsaid"),
        (
            "<p>&lt;image&gt; &lt;b&gt; &amp;amp; &eacute; &#x4e2d; &#0; &bogus;</p>",
            "image <b> &amp; é 中 \ufffd &bogus;",
        ),
        ("<p>a&lt;<b>image</b>&gt; &lt;EOC&gt;</p>", "aimage EOC"),
        (
            "<p>zero\u200bwidth soft\u00adhyphen\ufeff \u0007bell \ue123</p>",
            "zerowidth softhyphen bell",
        ),
        (
            "<p>keeps 👨\u200d👩 and \u0645\u06cc\u200c\u062e</p>",
            "keeps 👨\u200d👩 and \u0645\u06cc\u200c\u062e",
        ),
        ("<p>a<?p ?>b</p><?xml version='1.0'?><![CDATA[c]]><!doctype x>d", "ab\n\nd"),
        ("<p>a</p><script>x<y</script><style>p{}</style><template>t</template><p>b</p>", "a\n\nb"),
        (
            "<p>a</p><!-- <p>c</p> --><noscript>Enable "
            "scripts</noscript><iframe>f</iframe><svg><text>s</text></svg>",
            "a",
        ),
    ],
)
def test_text_of(html, expected):
    assert text(html) == expected


def test_boilerplate_is_cut():
    story = "<p>The story is told here, at some length, so that it is most of the page.</p>"
    rubbish = [
        "<nav>rubbish</nav>",
        "<footer>rubbish</footer>",
        "<aside>rubbish</aside>",
        "<header>rubbish</header>",
        '<div class="cookie-consent">rubbish</div>',
        '<div class="post socialShare">rubbish</div>',
        '<section id="sidebar">rubbish</section>',
        '<div class="ad">rubbish</div>',
        '<div role="navigation">rubbish</div>',
        '<div hidden>rubbish</div><span style="color: red; display : none">rubbish</span>',
        '<p class="sr-only">rubbish</p><div aria-hidden="true">rubbish</div>',
        "<form><label>rubbish</label></form><button>rubbish</button>",
        "<select><option>rubbish</select>",
        '<div><a href="1">rubbish</a> | <a href="2">rubbish</a> | <a href="3">rubbish</a></div>',
        f'<div id="comments">{"<p>rubbish of readers</p>" * 50}</div>',
    ]
    for html in rubbish:
        assert text(f"<body>{story}{html}{story}</body>").count("The story") == 2, html
        assert "rubbish" not in text(f"<body>{story}{html}{story}</body>"), html


@pytest.mark.parametrize(
    "html",
    [
        '<div class="download">kept</div>',  # "ad" is only a part of a word
        '<div class="shared-story">kept</div>',
        '<div class="elementor-widget-wrap">kept</div>',
        '<p>kept <a href="1">one</a></p>',
        '<p>kept <a name="1">long text at a place with a name, but no link</a></p>',
        "<article><header>kept</header></article>",
        f'<form id="aspnetForm"><p>kept {"and much more text " * 50}</p></form>',
    ],
)
def test_content_is_kept(html):
    assert "kept" in text(f"<p>The story is told here.</p>{html}")


def test_a_suspect_name_on_most_of_the_page_cuts_nothing():
    html = '<body class="sidebar ads"><p>{}</p><div class="with-sidebar"><p>{}</p></div></body>'
    assert text(html.format("x" * 50, "y" * 50)) == "x" * 50
    assert text(html.format("x" * 49, "y" * 50)) == "x" * 49 + "\n\n" + "y" * 50


def test_main_body_is_the_level_with_most_of_the_text():
    story = "".join(f"<p>{crawl.prose(seed)}</p><img src='{seed}.jpg'>" for seed in range(4))
    html = (
        '<title>T</title><div class="top"><img src="banner.jpg"><p>Welcome</p></div>'
        f'<div><div>{story}</div><div class="right"><img src="other.jpg"><p>Weather</p></div></div>'
    )
    found = parts(html)
    assert [part for part in found if isinstance(part, list)] == [
        ["0.jpg"],
        ["1.jpg"],
        ["2.jpg"],
        ["3.jpg"],
    ]
    assert not any("Welcome" in part or "Weather" in part for part in found)


def test_heading_and_article_stay_whole():
    story = "".join(f"<p>{crawl.prose(seed)}</p>" for seed in range(4))
    heading = '<h1>Head</h1><img src="hero.jpg">'
    html = f'<div>{heading}<div class="text">{story}</div></div><div>Else</div>'
    assert parts(html)[:2] == ["Head", ["hero.jpg"]]
    html = f'<article><img src="hero.jpg"><div>{story}</div></article><div>Else</div>'
    assert parts(html)[0] == ["hero.jpg"]
    assert len(parts(html)) == 2


def test_text_spread_over_many_blocks_stays():
    html = "".join(
        f"<div><h2>Part {i}</h2><p>{crawl.prose(i)}</p><img src={i}.jpg></div>" for i in range(5)
    )
    pictures = [part for part in parts(html) if isinstance(part, list)]
    assert pictures == [[f"{i}.jpg"] for i in range(5)]


@pytest.mark.parametrize(
    ("head", "body", "expected"),
    [
        ("<title>A title</title>", "<p>Text.</p>", "A title\n\nText."),
        ("<title>Heading | Site</title>", "<h1>Heading</h1><p>Text.</p>", "Heading\n\nText."),
        ("<title> </title>", "<p>Text.</p>", "Text."),
        ("<title>By the river a long way</title>", "<p>By</p>", "By the river a long way\n\nBy"),
        ("<title>&lt;image&gt;</title>", "<p>Text.</p>", "image\n\nText."),
    ],
)
def test_title_comes_first_unless_the_heading_says_it(head, body, expected):
    assert text(f"<html><head>{head}</head><body>{body}</body></html>") == expected


def test_title_before_an_image():
    assert parts("<title>T</title><img src=a.jpg><p>x") == ["T", ["a.jpg"], "x"]


@pytest.mark.parametrize(
    ("img", "expected"),
    [
        ('<img src="a.jpg">', ["https://example.org/blog/a.jpg"]),
        ('<img src="/a.jpg?w=1#f">', ["https://example.org/a.jpg?w=1"]),
        ('<img src="//cdn.example.org/a.jpg">', ["https://cdn.example.org/a.jpg"]),
        ('<img src=" \n a.jpg ">', ["https://example.org/blog/a.jpg"]),
        ('<img src="http://other.org/a.webp" srcset="b.jpg 2x">', ["http://other.org/a.webp"]),
        ('<img srcset="s.jpg 320w, m.jpg 640w, l.jpg 1280w">', ["https://example.org/blog/m.jpg"]),
        ('<img srcset="s.jpg 100w,l.jpg 500w">', ["https://example.org/blog/l.jpg"]),
        ('<img srcset="a,b/s.jpg 1x, a,b/l.jpg 2x">', ["https://example.org/blog/a,b/l.jpg"]),
        ('<img srcset="only.jpg">', ["https://example.org/blog/only.jpg"]),
        ('<img src="blank.gif" data-src="lazy.jpg">', ["https://example.org/blog/lazy.jpg"]),
        (
            '<img src="blank.gif" data-srcset="s.jpg 320w, lazy.jpg 800w">',
            ["https://example.org/blog/lazy.jpg"],
        ),
        (
            '<img src="data:image/gif;base64,R0lGODlhAQAB" data-original="lazy.jpg">',
            ["https://example.org/blog/lazy.jpg"],
        ),
        (
            '<img src="data:image/gif;base64,R0lGODlhAQAB" srcset="a.jpg 1x">',
            ["https://example.org/blog/a.jpg"],
        ),
        (
            '<picture><source type="image/svg+xml" srcset="d.svg"><source srcset="p.webp '
            '700w"><img alt=x></picture>',
            ["https://example.org/blog/p.webp"],
        ),
        (
            '<picture><source srcset="p.webp"><img src="p.jpg"></picture>',
            ["https://example.org/blog/p.jpg"],
        ),
        ('<noscript><img src="a.jpg"></noscript>', ["https://example.org/blog/a.jpg"]),
        ("<img><img src><img src=''><img alt=x>", []),
        ('<img src="logo.svg"><img src="data:image/svg+xml,<svg/>">', []),
        (
            '<img src="javascript:x"><img src="blob:x"><img src="about:blank"><img '
            'src="http://[::1">',
            [],
        ),
        ('<a href="movie.mp4">A film</a><video src="movie.mp4"><img src="poster.jpg"></video>', []),
        (f'<img src="{"a" * 5000}.jpg">', []),
        ('<img srcset="' + ", " * 50_000 + '">', []),
    ],
)
def test_the_image_of_an_img(img, expected):
    assert sources(img) == expected


@pytest.mark.parametrize(
    ("img", "expected"),
    [
        ('<img data-orig-file="full.jpg" src="full.jpg?w=640">', "full.jpg full.jpg?w=640"),
        ('<img src="a.jpg" data-src="b.jpg" data-original="c.png">', "b.jpg c.png a.jpg"),
        ('<img src="a.jpg" data-src="true" data-lazy="1" data-original="lazy">', "a.jpg"),
        ('<img src="a.jpg" data-src="{{ url }}/b.jpg">', "a.jpg"),
        ('<img src="a.jpg" data-src="/photo?id=3">', "/photo?id=3 a.jpg"),
        (
            '<img src="a.jpg" srcset="s.jpg 320w, l.jpg 1280w, m.jpg 640w, xs.jpg 160w">',
            "a.jpg m.jpg l.jpg s.jpg xs.jpg",
        ),
        ('<img srcset="a.jpg 640w 480h, b.jpg 320w 240h">', "a.jpg b.jpg"),
        ('<img srcset="a.jpg,b.jpg 2x,c.jpg">', "a.jpg,b.jpg c.jpg"),
        ('<img srcset="a.jpg, b.jpg 3x, c.jpg 2x">', "c.jpg b.jpg a.jpg"),
        (
            '<picture><source srcset="p.avif 700w" data-srcset="q.webp"><img src="a.jpg" '
            'srcset="b.jpg"></picture>',
            "a.jpg b.jpg p.avif q.webp",
        ),
        ('<picture><source srcset="p.webp"></picture><img src="a.jpg">', "a.jpg"),
        ('<video></video><source srcset="p.webp"><img src="a.jpg">', "a.jpg"),
        (
            '<img data-large-image="l.JPG" data-id="3" data-page="x.html" src="a.jpg" '
            'data-full-srcset="f.jpg 900w" data-caption="a/b">',
            "a.jpg l.JPG f.jpg",
        ),
        ('<img src="a.jpg" data-src="a.jpg" srcset="a.jpg 1x, logo.svg 2x">', "a.jpg"),
        ('<img src="data:image/gif;base64,R0lGODlhAQAB" data-src="b.jpg">', "b.jpg data"),
    ],
)
def test_all_places_of_an_image_are_named_the_best_first(img, expected):
    (picture,) = html_to_page(f"<p>text</p>{img}".encode(), URL).pictures
    found = [place.source for place in (picture, *picture.others)]
    base = "https://example.org/blog/"
    assert [url.replace(base, "") if url[:4] != "data" else "data" for url in found] == [
        f"https://example.org{url}" if url[0] == "/" else url for url in expected.split()
    ]


def test_number_of_places_is_limited():
    html = '<p>x</p><img srcset="' + ", ".join(f"{i}.jpg {i}w" for i in range(5_000)) + '">'
    (picture,) = html_to_page(html.encode(), URL).pictures
    assert len(picture.others) == 15


def test_query_is_in_the_charset_of_the_page():
    html = '<meta charset="shift_jis"><p>文</p><img src="/日.jpg?q=日">'.encode("cp932")
    (picture,) = html_to_page(html, URL).pictures
    assert picture.source == "https://example.org/%E6%97%A5.jpg?q=%93%FA"


def test_base_of_the_page():
    html = '<head><base href="/img/"><base href="/not/"></head><p>x</p><img src="a.jpg">'
    assert html_to_page(html.encode(), URL).pictures[0].source == "https://example.org/img/a.jpg"


def test_image_inside_the_page():
    data = crawl.png(1)
    packed = base64.b64encode(data).decode()
    html = f'<p>x</p><img alt="the  dog" src="data:image/png;base64,{packed}">'
    (picture,) = html_to_page(html.encode(), URL).pictures
    assert picture.data == data
    assert picture.alt == "the dog"
    assert picture.source.startswith("data:image/png,")
    assert len(picture.source) < 60
    damaged = html_to_page(b'<p>x</p><img src="data:image/png;base64,!!!a">', URL).pictures[0]
    assert damaged.data.startswith(b"damaged")


@pytest.mark.parametrize(
    ("lang", "expected"), [("en", "en"), ("EN-us", "en"), ("pt_BR", "pt"), ("", ""), (" de ", "de")]
)
def test_language_that_the_page_states(lang, expected):
    assert html_to_page(f'<html lang="{lang}"><p>x'.encode(), URL).language == expected


@pytest.mark.parametrize(
    "html",
    [
        "",
        " ",
        "<html></html>",
        "<img src=a.jpg>",
        "<frameset><frame src=a></frameset>",
        "\0",
        "<title>x</title>",
    ],
)
def test_page_without_text(html):
    assert html_to_page(html.encode(), URL) == Reject("no_text", URL)


def test_depth_is_limited_and_nothing_recurses():
    limits = HtmlLimits(max_depth=5_000)
    deep = "<div>" * 4_000 + "bottom" + "</div>" * 4_000
    assert sys.getrecursionlimit() < 4_000
    assert html_to_page(deep.encode(), URL, limits=limits).text == "bottom"
    inline = "<span>" * 1_500 + "bottom"
    assert html_to_page(inline.encode(), URL).reason == "html_too_deep"


TAGS = """
    <p> <div> </div> <ul> <li> </ul> <ol> <pre> </pre> <h1> <table> <td> <tr> </table> <form>
    <article> </article> <b> </b> <noscript> </noscript> <picture> <source> <frameset> <template>
    <svg> <math> <body> <html> <select> </a> <image> &lt;image&gt; &#xe000; &#0; words <!-- -->
    <![CDATA[ <? <?p?>
"""
FRAGMENTS = st.sampled_from(
    [
        *TAGS.split(),
        *("<a href=x>", "<p hidden>", "<div class=ad>", "<div id=comments>"),
        *("<base href='http://['>", " ", "\n"),
        *("<img src=a.jpg>", "<img src='data:image/png;base64,AA='>", "<source srcset='a 1x,'>"),
    ]
)


PAGES = st.lists(FRAGMENTS, max_size=40).map(lambda parts: "".join(parts).encode())


@hypothesis.given(st.one_of(st.binary(), PAGES), st.text(max_size=9))
@hypothesis.settings(max_examples=300)
def test_any_bytes_give_a_page_or_a_reject(body, charset):
    found = html_to_page(body, URL, charset)
    assert isinstance(found, Page | Reject)
    if isinstance(found, Page):
        texts = [part for part in found.parts if isinstance(part, str)]
        assert texts
        assert all(part and part == part.strip() and "<image>" not in part for part in texts)
        for first, second in itertools.pairwise(found.parts):
            assert not isinstance(first, str) or isinstance(second, Picture)
