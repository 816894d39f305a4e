"""A table as text and in Markdown, to the letter."""

from flamingo_jax.evaluation.report.table import MISSING, Table, TableRow

TABLE = Table(
    ("", "0", "32"),
    (
        TableRow(("this run", "71.2", MISSING), is_bold=True),
        TableRow(("Flamingo", "73.0", "100.0")),
    ),
)


def test_text():
    assert TABLE.text(gap=2) == [
        "             0     32",
        "this run  71.2      -",
        "Flamingo  73.0  100.0",
    ]
    assert TABLE.text(label_width=10, column_width=6, indent=1) == [
        "                0    32",
        " this run    71.2     -",
        " Flamingo    73.0 100.0",
    ]


def test_markdown():
    assert TABLE.markdown() == [
        "| | 0 | 32 |",
        "| --- | ---: | ---: |",
        "| **this run** | **71.2** | - |",
        "| Flamingo | 73.0 | 100.0 |",
    ]
