"""A table of text: names in the first column, numbers in the others.

    table = Table(("shots", "0", "4"), (TableRow(("this run", "71.2", "84.0"), is_bold=True),))

    table.text(gap=2)                 table.markdown()

        shots        0     4              | shots | 0 | 4 |
        this run  71.2  84.0              | --- | ---: | ---: |
                                          | **this run** | **71.2** | **84.0** |

Not by tabulate: it would be a dependency for forty lines, and it cannot give the columns of several
tables one width, or print a row in bold.
"""

from __future__ import annotations

import dataclasses

MISSING = "-"


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One row.

    Attributes:
        cells: texts, as many as the table has columns; MISSING where there is no value.
        is_bold: True to print the cells in bold in Markdown.
    """

    cells: tuple[str, ...]
    is_bold: bool = False


@dataclasses.dataclass(frozen=True)
class Table:
    """A head and rows of the same number of cells.

    Attributes:
        head: titles of the columns.
        rows: what is below.
    """

    head: tuple[str, ...]
    rows: tuple[TableRow, ...]

    def widths(self) -> list[int]:
        """Returns the width of each column: its longest cell."""
        lines = [self.head, *(row.cells for row in self.rows)]
        return [max(map(len, column)) for column in zip(*lines, strict=True)]

    def text(
        self, *, label_width: int = 0, column_width: int = 0, gap: int = 0, indent: int = 0
    ) -> list[str]:
        """Returns the lines for a terminal: the head, then the rows.

        The first column is aligned to the left, the others to the right.

        Args:
            label_width: least width of the first column.
            column_width: least width of each other column.
            gap: spaces between columns.
            indent: spaces before the first column.
        """
        first, *others = self.widths()
        first, others = max(first, label_width), [max(width, column_width) for width in others]
        lines = []
        for label, *cells in (self.head, *(row.cells for row in self.rows)):
            aligned = [cell.rjust(width) for cell, width in zip(cells, others, strict=True)]
            line = (" " * gap).join([label.ljust(first), *aligned])
            lines.append(" " * indent + line)
        return lines

    def markdown(self) -> list[str]:
        """Returns the lines in Markdown: the head, the rule, then the rows."""
        rule = ["---", *["---:"] * (len(self.head) - 1)]
        rows = [map(_bold, row.cells) if row.is_bold else row.cells for row in self.rows]
        return [
            "|" + "".join(f" {cell} |" if cell else " |" for cell in cells)
            for cells in (self.head, rule, *rows)
        ]


def _bold(cell: str) -> str:
    return cell if cell == MISSING else f"**{cell}**"
