"""Finds the charset of a web page, and decodes the page with it, as browsers do.

The labels are those of the WHATWG Encoding Standard (encoding.spec.whatwg.org). The order is that
of the HTML Standard ("determining the character encoding"): byte order mark, the server, the page,
its content. Pages rely on both: "iso-8859-1" is read as windows-1252, "gb2312" as gb18030.

Differs from browsers, because the text is wanted and not what a browser shows:
- A page that states UTF-8 and cannot be UTF-8 is read as the other charset that is stated, else as
  windows-1252. A page that states windows-1252 (or Latin-1, its other name) and is valid UTF-8 is
  read as UTF-8.
- A label that only Python knows is read as Python reads it, for example cp932.
- A page in UTF-16 without a mark or label is recognised by its zero bytes.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

WINDOWS_1252 = "cp1252"
_UTF_8 = "utf-8"
_REPLACEMENT = "replacement"  # charsets that browsers refuse, since they can hide scripts
_USER_DEFINED = "x-user-defined"
_ISO_2022_JP = "iso2022_jp"

# Name in Python, or one of the names above: labels.
_LABELS = {
    _UTF_8: "unicode-1-1-utf-8 unicode11utf8 unicode20utf8 utf-8 utf8 x-unicode20utf8",
    "cp866": "866 cp866 csibm866 ibm866",
    "iso8859-2": "csisolatin2 iso-8859-2 iso-ir-101 iso8859-2 iso88592 iso_8859-2 iso_8859-2:1987 "
    "l2 latin2",
    "iso8859-3": "csisolatin3 iso-8859-3 iso-ir-109 iso8859-3 iso88593 iso_8859-3 iso_8859-3:1988 "
    "l3 latin3",
    "iso8859-4": "csisolatin4 iso-8859-4 iso-ir-110 iso8859-4 iso88594 iso_8859-4 iso_8859-4:1988 "
    "l4 latin4",
    "iso8859-5": "csisolatincyrillic cyrillic iso-8859-5 iso-ir-144 iso8859-5 iso88595 iso_8859-5 "
    "iso_8859-5:1988",
    "iso8859-6": "arabic asmo-708 csiso88596e csiso88596i csisolatinarabic ecma-114 iso-8859-6 "
    "iso-8859-6-e iso-8859-6-i iso-ir-127 iso8859-6 iso88596 iso_8859-6 iso_8859-6:1987",
    "iso8859-7": "csisolatingreek ecma-118 elot_928 greek greek8 iso-8859-7 iso-ir-126 iso8859-7 "
    "iso88597 iso_8859-7 iso_8859-7:1987 sun_eu_greek",
    "iso8859-8": "csiso88598e csiso88598i csisolatinhebrew hebrew iso-8859-8 iso-8859-8-e "
    "iso-8859-8-i iso-ir-138 iso8859-8 iso88598 iso_8859-8 iso_8859-8:1988 logical visual",
    "iso8859-10": "csisolatin6 iso-8859-10 iso-ir-157 iso8859-10 iso885910 l6 latin6",
    "iso8859-13": "iso-8859-13 iso8859-13 iso885913",
    "iso8859-14": "iso-8859-14 iso8859-14 iso885914",
    "iso8859-15": "csisolatin9 iso-8859-15 iso8859-15 iso885915 iso_8859-15 l9",
    "iso8859-16": "iso-8859-16",
    "koi8-r": "cskoi8r koi koi8 koi8-r koi8_r",
    "koi8-u": "koi8-ru koi8-u",
    "mac-roman": "csmacintosh mac macintosh x-mac-roman",
    "cp874": "dos-874 iso-8859-11 iso8859-11 iso885911 tis-620 windows-874",
    "cp1250": "cp1250 windows-1250 x-cp1250",
    "cp1251": "cp1251 windows-1251 x-cp1251",
    WINDOWS_1252: "ansi_x3.4-1968 ascii cp1252 cp819 csisolatin1 ibm819 iso-8859-1 iso-ir-100 "
    "iso8859-1 iso88591 iso_8859-1 iso_8859-1:1987 l1 latin1 us-ascii windows-1252 x-cp1252",
    "cp1253": "cp1253 windows-1253 x-cp1253",
    "cp1254": "cp1254 csisolatin5 iso-8859-9 iso-ir-148 iso8859-9 iso88599 iso_8859-9 "
    "iso_8859-9:1989 l5 latin5 windows-1254 x-cp1254",
    "cp1255": "cp1255 windows-1255 x-cp1255",
    "cp1256": "cp1256 windows-1256 x-cp1256",
    "cp1257": "cp1257 windows-1257 x-cp1257",
    "cp1258": "cp1258 windows-1258 x-cp1258",
    "mac-cyrillic": "x-mac-cyrillic x-mac-ukrainian",
    "gb18030": "chinese csgb2312 csiso58gb231280 gb18030 gb2312 gb_2312 gb_2312-80 gbk iso-ir-58 "
    "x-gbk",
    "big5hkscs": "big5 big5-hkscs cn-big5 csbig5 x-x-big5",
    "euc_jp": "cseucpkdfmtjapanese euc-jp x-euc-jp",
    _ISO_2022_JP: "csiso2022jp iso-2022-jp",
    "cp932": "csshiftjis ms932 ms_kanji shift-jis shift_jis sjis windows-31j x-sjis",
    "cp949": "cseuckr csksc56011987 euc-kr iso-ir-149 korean ks_c_5601-1987 ks_c_5601-1989 ksc5601 "
    "ksc_5601 windows-949",
    _REPLACEMENT: "csiso2022kr hz-gb-2312 iso-2022-cn iso-2022-cn-ext iso-2022-kr replacement",
    "utf-16-be": "unicodefffe utf-16be",
    "utf-16-le": "csunicode iso-10646-ucs-2 ucs-2 unicode unicodefeff utf-16 utf-16le",
    _USER_DEFINED: "x-user-defined",
}
_BY_LABEL = {label: name for name, labels in _LABELS.items() for label in labels.split()}
# Python's labels that are no label of the standard. Some of its other codecs decompress, or take
# very long.
_PYTHON_FAMILIES = ("iso8859", "cp125", "cp874", "mac-", "koi8", "cp932", "cp949", "utf-8")
_READ_AS = {"iso8859-1": WINDOWS_1252, "iso8859-9": "cp1254", "utf-8-sig": _UTF_8}

_BOMS = (
    (codecs.BOM_UTF8, _UTF_8),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_XML_STARTS = (("<?x".encode("utf-16-le"), "utf-16-le"), ("<?x".encode("utf-16-be"), "utf-16-be"))
_META_WITHIN = 4096  # bytes; browsers search 1,024, but some pages put it after scripts
_SPACE = "\t\n\f\r "
_TAG = re.compile(rb"</?[a-zA-Z][^\s/>]*")
_ATTRIBUTE = re.compile(
    rb"[\s/]*([^\s/>=]+)(?:\s*=\s*(?:\"([^\"]*)\"?|'([^']*)'?|([^\s>\"'][^\s>]*)))?"
)
_XML_ENCODING = re.compile(rb"encoding\s*=\s*[\"']([^\"']{1,40})[\"']")
_CHARSET = re.compile(r"charset\s*=\s*(?:\"([^\"]*)\"|'([^']*)'|([^\s;\"',]+))", re.IGNORECASE)

_ZEROS_WITHIN = 256  # bytes that are searched for zeros
_MOST_FOREIGN = 0.3  # largest share of characters outside ASCII in a text in a Latin script
_MISREAD = 4  # a text is not UTF-8 if its invalid bytes are this many times its other characters

# Where Python's tables differ from the standard's.
_EUC_JP = {0x301C: 0xFF5E, 0x2016: 0x2225, 0x2212: 0xFF0D, 0xA2: 0xFFE0, 0xA3: 0xFFE1, 0xAC: 0xFFE2}
_GB18030 = str.maketrans(
    "\ue5e5\ue78d\ue78e\ue78f\ue790\ue791\ue792\ue793\ue794\ue795"
    "\ue796\ue7c7\ue81e\ue826\ue82b\ue82c\ue832\ue843\ue854\ue864",
    "\u3000\ufe10\ufe12\ufe11\ufe13\ufe14\ufe15\ufe16\ufe17\ufe18"
    "\ufe19\u1e3f\u9fb4\u9fb5\u9fb6\u9fb7\u9fb8\u9fb9\u9fba\u9fbb",
)
_CHANGED = {"euc_jp": _EUC_JP, "gb18030": _GB18030, "koi8-u": {0x255D: 0x45E, 0x256C: 0x40E}}


def codec_of(label: str) -> str:
    """Returns Python's name for the charset of a label, or "" for an unknown label.

    Two charsets of the standard have no codec: "x-user-defined", and "replacement", the name for
    all that browsers refuse.
    """
    label = label.strip(_SPACE).strip("\"'").strip(_SPACE).lower()
    if name := _BY_LABEL.get(label, ""):
        return name
    try:
        name = codecs.lookup(label).name if label else ""
    except (LookupError, ValueError):
        return ""
    return _READ_AS.get(name, name) if name.startswith(_PYTHON_FAMILIES) else ""


def label_in(content_type: str) -> str:
    """Returns the charset in a Content-Type such as "text/html; charset=utf-8", or ""."""
    found = _CHARSET.search(content_type)
    return next(filter(None, found.groups()), "") if found else ""


def charset_of(body: bytes, stated: str = "") -> str:
    """Returns the charset of a page, as `codec_of` does.

    Args:
      body: the page.
      stated: label that the server or the archive states; "" = none.
    """
    for mark, name in _BOMS:
        if body.startswith(mark):
            return name
    labels = (codec_of(stated), _of_meta(body[:_META_WITHIN]))
    for name in filter(None, labels):
        if name.startswith("utf-16") and b"\0" not in body[:_ZEROS_WITHIN] and body:
            return _UTF_8  # text in UTF-16 has zeros, in tags at least
        is_cut = body[:-3].isascii()  # within its only character outside ASCII
        if name == _UTF_8 and not is_cut and not _may_be_utf_8(body):
            other = next((each for each in labels if each not in ("", _UTF_8)), "")
            return other or (WINDOWS_1252 if _is_latin(body) else _UTF_8)
        if name == WINDOWS_1252 and not body.isascii() and _is_utf_8(body):
            return _UTF_8
        return name
    for start, name in _XML_STARTS:
        if body.startswith(start):
            return name
    even, odd = body[:_ZEROS_WITHIN:2], body[1:_ZEROS_WITHIN:2]
    for high, low, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if low and not low.count(0) and 2 * high.count(0) > len(high):
            return name
    return _UTF_8 if _may_be_utf_8(body) else WINDOWS_1252


def decode(body: bytes, name: str) -> str:
    """Decodes a page. What is not in the charset becomes U+FFFD.

    Args:
      body: the page, with or without a byte order mark.
      name: as `charset_of` returns it.
    """
    for mark, charset in _BOMS:
        if name == charset and body.startswith(mark):
            body = body[len(mark) :]
    if name == _REPLACEMENT:
        return "\ufffd" if body else ""
    if name == _USER_DEFINED:
        return body.decode("latin-1").translate({byte: 0xF700 + byte for byte in range(128, 256)})
    if name == _ISO_2022_JP:
        return "".join(_of_iso_2022_jp(body))
    if name == "cp1255" and b"\xca" in body:  # Python lacks this character
        return "\u05ba".join(decode(part, name) for part in body.split(b"\xca"))
    text = body.decode(name, "replace" if name.startswith("utf-") else _HANDLER)
    return text.translate(_CHANGED[name]) if name in _CHANGED and not text.isascii() else text


def _of_meta(head: bytes) -> str:
    """Returns the charset that the first bytes of a page state: in a <meta>, else in <?xml ?>.

    This is the HTML Standard's "prescan a byte stream to determine its encoding".
    """
    position = 0
    while (position := head.find(b"<", position)) >= 0:
        if head.startswith(b"<!--", position):
            end = head.find(b"-->", position + 2)
            if end < 0:
                break
            position = end + 3
        elif tag := _TAG.match(head, position):
            attributes, position = _attributes(head, tag.end())
            if tag.group().lower() == b"<meta" and (name := _of_attributes(attributes)):
                return name
        else:
            position += 1
    xml = _XML_ENCODING.search(head.partition(b">")[0]) if head.startswith(b"<?xml") else None
    return _in_ascii(codec_of(xml.group(1).decode("latin-1"))) if xml else ""


def _attributes(head: bytes, position: int) -> tuple[dict[str, str], int]:
    """Returns the attributes of a tag, in lower case, and where they end."""
    attributes: dict[str, str] = {}
    while found := _ATTRIBUTE.match(head, position):
        name, *values = (part.decode("latin-1").lower() for part in found.groups(b""))
        attributes.setdefault(name, "".join(values))
        position = found.end()
    return attributes, position


def _of_attributes(attributes: dict[str, str]) -> str:
    """Returns the charset that the attributes of a <meta> state."""
    if name := codec_of(attributes.get("charset", "")):
        return _in_ascii(name)
    # Some pages leave http-equiv out, but then the content is a Content-Type.
    kind, content = attributes.get("http-equiv", "content-type"), attributes.get("content", "")
    return _in_ascii(codec_of(label_in(content))) if kind == "content-type" else ""


def _in_ascii(name: str) -> str:
    """Returns the charset of a page with a label that was found by reading the page as ASCII."""
    if name == _USER_DEFINED:
        return WINDOWS_1252
    return _UTF_8 if name.startswith("utf-16") else name


def _is_utf_8(body: bytes) -> bool:
    try:
        body.decode(_UTF_8)
        return True
    except UnicodeDecodeError as error:
        return error.reason == "unexpected end of data" and not body[: error.start].isascii()


def _may_be_utf_8(body: bytes) -> bool:
    """Returns True for UTF-8, also if some characters are damaged or cut."""
    if _is_utf_8(body):
        return True
    text = body.decode(_UTF_8, "replace")
    invalid = text.count("\ufffd") - body.count("\ufffd".encode())
    others = len(text) - invalid - len(text.encode("ascii", "ignore"))
    return invalid < _MISREAD * others


def _is_latin(body: bytes) -> bool:
    """Returns True if few enough bytes are outside ASCII for a text in a Latin script."""
    return len(body) - len(body.decode("ascii", "ignore")) <= _MOST_FOREIGN * len(body)


def _of_iso_2022_jp(body: bytes) -> Iterator[str]:
    """Yields the parts of a text in ISO-2022-JP, which escape sequences separate.

    Python's codec lacks the characters that NEC and IBM added to the standard's table.
    """
    first, *rest = body.split(b"\x1b")
    yield first.decode("ascii", "replace")
    for part in rest:
        escape, content = part[:2], part[2:]
        if escape in (b"$@", b"$B"):  # JIS X 0208, two bytes each; a line can end inside
            high = bytes(byte | 0x80 if 0x21 <= byte <= 0x7E else byte for byte in content)
            yield decode(high, "euc_jp")
        elif escape == b"(I":  # katakana, one byte each
            high = bytes(byte | 0x80 if 0x21 <= byte <= 0x5F else byte for byte in content)
            yield high.decode("cp932", "replace")
        elif escape in (b"(B", b"(J"):
            text = content.decode("ascii", "replace")
            yield text.translate({0x5C: 0xA5, 0x7E: 0x203E}) if escape == b"(J" else text
        else:
            yield "\ufffd" + part.decode("ascii", "replace")


def _handle(error: UnicodeError) -> tuple[str, int]:
    """Decodes bytes that Python's codecs lack and the standard's tables have."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    pair = error.object[error.start : error.start + 2]
    if error.encoding == "charmap":  # the codecs of one byte per character
        is_control = 0x80 <= pair[0] < 0xA0
        character = chr(pair[0]) if is_control else "\ufffd"
        return character, error.start + 1
    if error.encoding == "gb18030" and pair[0] == 0x80:
        return "€", error.start + 1
    if error.encoding == "euc_jp" and len(pair) == 2 and min(pair) >= 0xA1:
        row, cell = pair[0] - 0xA1, pair[1] - 0xA1
        lead = row // 2 + (0x81 if row < 62 else 0xC1)
        trail = cell + (0x9F if row % 2 else 0x40 + (cell > 62))
        try:
            return bytes((lead, trail)).decode("cp932"), error.start + 2
        except UnicodeDecodeError:
            return "\ufffd", error.start + 2
    return "\ufffd", error.end


_HANDLER = "flamingo_jax.whatwg"
codecs.register_error(_HANDLER, _handle)
