"""A table of several runs beside published rows, as Markdown, text, CSV and one HTML page."""

from __future__ import annotations

import csv
import dataclasses
import io

from flamingo_jax.core import paths
from flamingo_jax.core.html_page import template
from flamingo_jax.core.paths import Path, PathLike
from flamingo_jax.evaluation.report.table import Table


@dataclasses.dataclass(frozen=True)
class JoinedTable:
    """A table with what a reader must know of it.

    Attributes:
        name: of the files, such as "table_3".
        title: the heading.
        about: one sentence on the values.
        table: the rows; those of runs are bold.
        notes: sources, corrections, and what is missing, a line each.
    """

    name: str
    title: str
    about: str
    table: Table
    notes: tuple[str, ...] = ()

    def markdown(self) -> str:
        lines = [f"### {self.title}", "", self.about, "", *self.table.markdown(), ""]
        return "\n".join([*lines, *(f"- {note}" for note in self.notes)]) + "\n"

    def text(self) -> str:
        lines = [self.title, self.about, "", *self.table.text(gap=2), ""]
        return "\n".join([*lines, *self.notes]) + "\n"

    def csv(self) -> str:
        """Returns the rows alone; the first column says which are of runs."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(["of", *self.table.head])
        for row in self.table.rows:
            writer.writerow(["run" if row.is_bold else "paper", *row.cells])
        return buffer.getvalue()

    def html(self) -> str:
        return template(__file__).render(
            title=self.title, made=self.about, facts={}, table=self.table, notes=self.notes
        )

    def write(self, directory: PathLike) -> list[Path]:
        """Writes NAME.md, NAME.txt, NAME.csv and NAME.html, and returns their paths.

        Raises:
            PathError: the directory cannot be written.
        """
        target = paths.make_directory(directory)
        return [
            paths.write_atomically(target / f"{self.name}.{suffix}", content)
            for suffix, content in (
                ("md", self.markdown()),
                ("txt", self.text()),
                ("csv", self.csv()),
                ("html", self.html()),
            )
        ]
