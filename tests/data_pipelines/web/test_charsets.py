"""Charsets of pages: every label of the standard, and what a page with a wrong one is read as."""

import hashlib

import hypothesis
import hypothesis.strategies as st
import pytest

from data_pipelines.web import charsets
from data_pipelines.web.charsets import charset_of, codec_of, decode, label_in

# SHA-256 of the labels of encoding.spec.whatwg.org/encodings.json, sorted, one a line.
STANDARD = "46072234c8054aa57f3a0128f6c7266aab0de14c99da826d58fc0f1855d7c403"
# For each charset of the standard: labels that pages use, and text that others would spoil.
SAMPLES = [
    ("utf-8 utf8 unicode-1-1-utf-8 x-unicode20utf8", "é 日本語 🎉", "utf-8"),
    ("866 cp866 csibm866", "русский ё №", "cp866"),
    ("latin2 iso8859-2 l2", "zażółć gęślą", "iso8859-2"),
    ("latin3 iso-ir-109", "ħġċĉ", "iso8859-3"),
    ("l4 csisolatin4", "āčēģ", "iso8859-4"),
    ("cyrillic iso-8859-5", "русский №", "iso8859-5"),
    ("arabic asmo-708 iso-8859-6-i", "مرحبا", "iso8859-6"),
    ("greek sun_eu_greek elot_928", "Ελλάδα", "iso8859-7"),
    ("hebrew visual logical iso-8859-8-i", "שלום", "iso8859-8"),
    ("l6 iso-8859-10", "āđģ", "iso8859-10"),
    ("iso885913", "ąčęė", "iso8859-13"),
    ("iso-8859-14", "ŵŷṫ", "iso8859-14"),
    ("l9 csisolatin9", "œ € ž", "iso8859-15"),
    ("iso-8859-16", "ș ț „", "iso8859-16"),
    ("koi8 koi8_r cskoi8r", "русский ё", "koi8-r"),
    ("koi8-ru koi8-u", "їґє", "koi8-u"),
    ("mac x-mac-roman csmacintosh", "é “œ” ü", "mac-roman"),
    ("tis-620 iso-8859-11 dos-874", "ภาษาไทย ” €", "cp874"),
    ("x-cp1250 windows-1250", "zażółć “x”", "cp1250"),
    ("x-cp1251 cp1251", "русский «ё»", "cp1251"),
    ("latin1 ascii iso-8859-1 us-ascii cp819 x-cp1252", "café – “x” €", "cp1252"),
    ("cp1253", "Ελλάδα €", "cp1253"),
    ("latin5 iso-8859-9 windows-1254", "ığş “x”", "cp1254"),
    ("x-cp1255", "שלום €", "cp1255"),
    ("cp1256", "مرحبا “x”", "cp1256"),
    ("x-cp1257", "ąčęė “x”", "cp1257"),
    ("windows-1258", "đơư", "cp1258"),
    ("x-mac-cyrillic x-mac-ukrainian", "русский ґ", "mac-cyrillic"),
    ("gb2312 x-gbk chinese gbk gb18030 iso-ir-58", "中文网页 镕 €", "gb18030"),
    ("big5 big5-hkscs x-x-big5 cn-big5", "國語 嘅", "big5hkscs"),
    ("x-euc-jp euc-jp cseucpkdfmtjapanese", "日本語の文章", "euc_jp"),
    ("csiso2022jp iso-2022-jp", "日本語の文章 text", "iso2022_jp"),
    ("x-sjis windows-31j ms_kanji sjis shift-jis", "日本語 ① ㈱ 髙", "cp932"),
    ("korean ks_c_5601-1987 windows-949 euc-kr", "한국어 똠방각하", "cp949"),
    ("unicodefffe utf-16be", "é 日本語", "utf-16-be"),
    ("utf-16 ucs-2 unicode iso-10646-ucs-2", "é 日本語", "utf-16-le"),
]
CP1252 = "<p>It’s the owner’s café – “good” and all in plain words.</p>"


def test_the_labels_are_those_of_the_standard():
    labels = sorted(charsets._BY_LABEL)
    assert len(labels) == 228
    assert hashlib.sha256("\n".join(labels).encode()).hexdigest() == STANDARD


@pytest.mark.parametrize(("labels", "text", "codec"), SAMPLES, ids=lambda value: str(value)[:20])
def test_each_charset_is_read_under_its_labels(labels, text, codec):
    page = f"<p>{text}</p>"
    for label in labels.split():
        for stated in (label, f' "{label.upper()}"\t'):
            assert decode(page.encode(codec), charset_of(page.encode(codec), stated)) == page
        if not codec.startswith("utf-16"):  # what a <meta> says of itself
            page_of = f"<head><meta charset={label}></head>{page}"
            assert decode(page_of.encode(codec), charset_of(page_of.encode(codec))) == page_of


@pytest.mark.parametrize(
    ("label", "body", "text"),
    [
        ("windows-1252", b"\x80\x81\x9d", "€\x81\x9d"),
        ("windows-1253", b"\xc1\xaa", "Α\ufffd"),
        ("windows-1255", b"\xca\xf9", "\u05baש"),
        ("koi8-u", b"\xae\xbe", "ўЎ"),
        ("euc-jp", b"\xad\xa1\xa1\xc1\xfc\xe2", "①～髙"),
        ("iso-2022-jp", b"\x1b$B-!!A\x1b(B a\x1b(J\\\x1b(I1", "①～ a¥ｱ"),
        ("shift_jis", b"\x87\x40\x81\x60", "①～"),
        ("gbk", b"\xa2\xe3\xa3\xa0\x80", "€\u3000€"),
        ("big5", b"\xa1\x40\xc6\xe7", "\u3000ぁ"),
        ("x-user-defined", b"a\x80\xff", "a\uf780\uf7ff"),
        ("hz-gb-2312", b"~{VPND~}", "\ufffd"),
        ("iso-2022-kr", b"text", "\ufffd"),
        ("utf-16", b"a\0b\0", "ab"),
    ],
)
def test_tables_that_differ_from_pythons(label, body, text):
    assert decode(body, codec_of(label)) == text


@pytest.mark.parametrize(
    ("head", "codec"),
    [
        ("<meta charset=utf-16>", "utf-8"),
        ("<meta charset=x-user-defined>", "cp1252"),
        ("<meta http-equiv=content-type content='text/html; charset=koi8-r'>", "koi8-r"),
        ('<META CONTENT="text/html;charset= koi8-r" HTTP-EQUIV="Content-Type">', "koi8-r"),
        ("<meta content='text/html; charset=koi8-r'>", "koi8-r"),
        ("<meta name=x content='charset=koi8-r' http-equiv=refresh>", "cp1252"),
        ("<!-- <meta charset=koi8-r> --><meta charset=cp1251>", "cp1251"),
        ("<!--><meta charset=koi8-r>", "koi8-r"),
        (
            "<title>a > b</title><meta data-x='<meta charset=utf-8>' charset = \"koi8-r\" >",
            "koi8-r",
        ),
        ("<meta charset=nonsense><meta charset=koi8-r>", "koi8-r"),
        ("<metadata charset=cp1251><meta/charset=koi8-r>", "koi8-r"),
        ("<?xml version='1.0' encoding='koi8-r'?><html>", "koi8-r"),
        ("<?xml version='1.0' encoding='koi8-r'?><meta charset=cp1251>", "cp1251"),
        (" " * 5000 + "<meta charset=koi8-r>", "cp1252"),
    ],
)
def test_charset_that_a_page_states(head, codec):
    assert charset_of(head.encode() + b"<p>\xc1\xe0") == codec


def test_utf_16_is_recognised_by_its_content():
    for codec in ("utf-16-le", "utf-16-be"):
        assert charset_of("<html><p>text</p>".encode(codec)) == codec
        assert charset_of("<?xml version='1.0'?>".encode(codec)) == codec
    assert charset_of(b"<p>text</p>", "utf-16") == "utf-8"


def test_page_that_states_utf_8_and_is_windows_1252():
    body = CP1252.encode("cp1252")
    head = b'<meta charset="utf-8">'
    assert decode(body, charset_of(body, "UTF-8")) == CP1252
    assert decode(head + body, charset_of(head + body)) == head.decode() + CP1252
    long = body + b"plain words " * 10_000
    assert charset_of(long, "utf-8") == "cp1252"


def test_page_with_two_charsets_is_read_in_the_one_that_fits():
    body = b"<meta charset=windows-1251><p>" + "русский текст".encode("cp1251")
    assert charset_of(body, "utf-8") == "cp1251"
    assert charset_of(body, "koi8-r") == "koi8-r"


def test_page_that_states_utf_8_in_another_script_is_damaged():
    body = ("русский текст " * 20).encode("cp1251")
    assert "\ufffd" in decode(body, charset_of(body, "utf-8"))


def test_utf_8_that_is_damaged_or_cut_stays_utf_8():
    for body in (CP1252.encode()[:-5] + b"\x94", b"<p>text " + "é".encode()[:1]):
        assert charset_of(body, "utf-8") == "utf-8"


def test_page_that_states_latin_1_and_is_utf_8():
    assert charset_of(CP1252.encode(), "iso-8859-1") == "utf-8"
    assert charset_of(CP1252.encode("cp1252"), "iso-8859-1") == "cp1252"
    assert charset_of("русский".encode(), "koi8-r") == "koi8-r"


@pytest.mark.parametrize(
    ("content_type", "label"),
    [
        ("text/html; charset=utf-8", "utf-8"),
        ('text/html;CHARSET = "koi8-r"; x=y', "koi8-r"),
        ("text/html; charset='koi8-r'", "koi8-r"),
        ("text/html, text/html; charset=utf-8, x", "utf-8"),
        ("text/html; charset=", ""),
        ("text/html", ""),
    ],
)
def test_label_in_a_content_type(content_type, label):
    assert label_in(content_type) == label


@hypothesis.given(st.binary(max_size=200), st.sampled_from(["", *sorted(charsets._BY_LABEL)]))
def test_any_bytes_are_decoded_under_any_label(body, label):
    name = charset_of(body, label)
    assert isinstance(decode(body, name), str)
    decode(body, codec_of(label) or "utf-8")


@hypothesis.given(st.text(), st.text())
def test_any_label_is_known_or_unknown(label, content_type):
    codec_of(label), codec_of(label_in(content_type))
