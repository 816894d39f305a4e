"""The elements of an HTML page. Fails if one is not closed."""

import html.parser


class Elements(html.parser.HTMLParser):
    """The elements of a page, in document order.

    Attributes:
        found: (tag, attributes, text directly in it) of each element.
    """

    VOID = ("meta", "img", "br", "link")

    def __init__(self):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None], str]] = []
        self._open: list[int] = []

    @classmethod
    def of(cls, page: str) -> "Elements":
        elements = cls()
        elements.feed(page)
        elements.close()
        assert not elements._open, "every element is closed"
        return elements

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self._open.append(len(self.found))
        self.found.append((tag, dict(attrs), ""))

    def handle_endtag(self, tag):
        assert self.found[self._open.pop()][0] == tag

    def handle_data(self, data):
        if self._open:
            tag, attributes, text = self.found[self._open[-1]]
            self.found[self._open[-1]] = (tag, attributes, text + data)

    def all(self, tag, class_=""):
        """Returns (attributes, text) of the elements with this tag and all these classes."""
        return [
            (attributes, text)
            for found, attributes, text in self.found
            if found == tag and set(class_.split()) <= set((attributes.get("class") or "").split())
        ]

    def fact(self, name):
        """Returns the <dd> that follows the <dt> `name`."""
        names, values = self.all("dt"), self.all("dd")
        return dict(zip([text for _, text in names], [text for _, text in values], strict=True))[
            name
        ]
