"""launch/ON_CALL.md names messages that exist, and all exit statuses."""

import ast
import pathlib
import re

import pytest

from flamingo_jax.core import exit_status

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGE = ROOT / "launch" / "ON_CALL.md"
GAP = "…"  # what a message fills in


def tables(header: str) -> list[list[str]]:
    """Returns the rows of the page's tables whose first header is `header`, as cells."""
    rows, inside = [], False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not cells:
            inside = False
        elif inside and not set(cells[0]) <= {"-"}:
            rows.append(cells)
        inside = inside or cells[:1] == [header]
    return rows


def messages() -> list[str]:
    """Returns all messages of the page."""
    return [message for row in tables("message") for message in re.findall(r"`([^`]+)`", row[0])]


def python_texts(text: str) -> list[str]:
    """Returns the strings of a Python file, with GAP in place of each value that is filled in."""
    nodes = list(ast.walk(ast.parse(text)))
    joined = [node for node in nodes if isinstance(node, ast.JoinedStr)]
    inside = {id(part) for node in joined for part in ast.walk(node)}
    found = [
        "".join(str(part.value) if isinstance(part, ast.Constant) else GAP for part in node.values)
        for node in joined
    ]
    return found + [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside
    ]


def shell_texts(text: str) -> list[str]:
    """Returns the lines of a script: words that go on in the next line are joined."""
    joined = re.sub(r"\"? ?\\\n\s*\"?", " ", text)
    joined = re.sub(r"\$\([^()]*\)|\$\{[^{}]*\}|\$\w+", GAP, joined)
    return [line.strip() for line in joined.splitlines() if not line.strip().startswith("#")]


def is_said(message: str, texts: list[str]) -> bool:
    """Returns True if one text has the fixed parts of a message in their order."""
    parts = [re.escape(part.strip()) for part in message.split(GAP) if part.strip()]
    pattern = re.compile(".*".join(parts), re.DOTALL)
    return bool(parts) and any(pattern.search(text) for text in texts)


@pytest.fixture(scope="module")
def texts():
    """What the programs and the scripts of launch/ can print."""
    files = [*(ROOT / "flamingo_jax").rglob("*.py"), *(ROOT / "data_pipelines").rglob("*.py")]
    found = [text for path in sorted(files) for text in python_texts(path.read_text())]
    for path in sorted((ROOT / "launch").glob("*.sh")):
        found += shell_texts(path.read_text())
    return found


def test_every_message_exists(texts):
    assert len(messages()) >= 40
    assert not [message for message in messages() if not is_said(message, texts)]


def notes(text: str) -> list[str]:
    """Returns the lines that a file gives to `report`: for people, while a run goes on."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        found
        for call in calls
        if re.fullmatch(r"(self\._)?report", ast.unparse(call.func))
        for argument in call.args
        for found in python_texts(ast.unparse(argument))
        if len(found) > 30  # a whole line, no part of one
    ]


def test_every_note_of_a_run_is_on_the_page():
    said = [
        note
        for folder in ("training", "checkpoint")
        for path in sorted((ROOT / "flamingo_jax" / folder).rglob("*.py"))
        for note in notes(path.read_text())
    ]
    assert len(said) >= 10
    page = messages()
    assert not [note for note in said if not any(is_said(message, [note]) for message in page)]


def test_every_message_has_its_meaning_and_what_to_do():
    assert not [row for row in tables("message") if len(row) != 3 or not all(row)]
    assert not [row for row in tables("message") if not re.findall(r"`([^`]+)`", row[0])]


def test_the_page_has_all_exit_statuses():
    described = {int(number) for row in tables("status") for number in re.findall(r"\d+", row[0])}
    assert described == {
        *(exit_status.DONE, exit_status.ERROR, exit_status.ENDED_AS_ASKED, exit_status.STUCK),
        *(exit_status.of_signal(number) for number in (1, 2, 9, 15)),
    }


def test_a_message_that_is_gone_is_seen():
    (text,) = python_texts('raise A(f"Cannot read {path}: {reason}. " f"Give {x} or {y}.")')
    assert text == "Cannot read …: …. Give … or …."
    assert is_said("Cannot read …. Give …", [text])
    assert not is_said("Cannot write …", [text])
    assert not is_said("Give … Cannot read", [text])
    lines = shell_texts('# no\n  die "$name is $(state) now:" \\\n    "look at ${log##*/}"')
    assert lines == ['die "… is … now: look at …"']
