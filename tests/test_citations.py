"""Each citation of the paper in code and documents names a section that supports the claim.

`paper_sections.py` lists what each section says.
"""

import pathlib
import re
from collections.abc import Iterator

from tests.paper_sections import SECTIONS, TOPICS

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ("flamingo_jax", "data_pipelines", "configs", "launch")
FILES = sorted(
    path for name in FOLDERS for path in (ROOT / name).rglob("*") if path.suffix in (".py", ".md")
)
FILES += sorted(ROOT.glob("*.md"))
# A section of the appendix is recognised everywhere. A section of the body looks like any number,
# so it is recognised only after these words.
APPENDIX = re.compile(r"(?<![\w.])([A-F]\.\d(?:\.\d)?)(?![\w]|\.\d)")
BODY = re.compile(
    r"(?:[Pp]aper,? (?:[Ss]ections? )?|[Ss]ections? |^\| |(?<=\()(?=2\.1, ))"
    r"((?:\d\.\d)(?:(?:, | and )\d\.\d)*)(?![\d%])"
)
# Words that mark a citation of another publication, or of another version of the paper.
OTHERS = re.compile(r"first version|Brock|OpenFlamingo, arXiv|publishers'|Pope et al|Korthikanti")


def citations(text: str) -> Iterator[tuple[int, set[str], str]]:
    """Yields (line number, sections cited there, that line with two before and one after)."""
    lines = text.splitlines()
    for i, line in enumerate(lines):
        begun = (
            re.split(r"[.)](?:\s|$)", lines[i - 1])[-1] if i else ""
        )  # a citation over two lines
        if OTHERS.search(f"{begun} {line.strip()}"):
            continue
        found = set(APPENDIX.findall(line))
        for several in BODY.findall(line):
            found |= set(re.findall(r"\d\.\d", several))
        if found:
            around = line if line.startswith("| ") else "\n".join(lines[max(0, i - 2) : i + 2])
            yield i + 1, found, around


def problems(name: str, text: str) -> list[str]:
    """Returns one line for each wrong citation of a text, with its place."""
    wrong = []
    for number, sections, around in citations(text):
        for section in sorted(sections):
            if section not in SECTIONS:
                wrong.append(
                    f"{name}:{number}: the paper has no section {section}, or "
                    "paper_sections.py lacks it"
                )
            elif not re.search(SECTIONS[section][1], around, re.IGNORECASE):
                wrong.append(
                    f"{name}:{number}: {section} ({SECTIONS[section][0]}) does not say this"
                )
        line = text.splitlines()[number - 1]
        for topic, allowed in TOPICS.items():
            if re.search(topic, line, re.IGNORECASE) and not sections & set(allowed):
                wrong.append(
                    f"{name}:{number}: {topic!r} is in {' or '.join(allowed)}, not in "
                    f"{sorted(sections)}"
                )
    return wrong


def test_citations_are_right():
    wrong = [
        line for path in FILES for line in problems(str(path.relative_to(ROOT)), path.read_text())
    ]
    assert not wrong, "\n".join(wrong)


def test_there_are_citations():
    cited = [sections for path in FILES for _, sections, _ in citations(path.read_text())]
    assert len(cited) > 80
    assert len(set().union(*cited)) > 15


def test_wrong_citations_are_seen():
    """These were in version 0.4.0."""
    for line in (
        "| A.3.1 images padded with the mean | `a` | `b` |",
        "| A.3.1 flip and colour augmentation | `a` | `b` |",
        "| A.3.3 clips of videos | `a` | `b` |",
        "as supports, the examples most like the query's (RICES; paper, B.1.5)",
        "ranked by its log-likelihood (paper, Appendix B.1.5).",
        "space_prefix=0.5,  # how often a caption gets a space in front (paper, A.3.3)",
        "8 frames -> 30 (paper, 2.1 and B.1.5)",
        "deduplication against the evaluation sets (paper, A.3.1)",
        "two text-only examples (paper, B.1.5)",
        "rows of the new tokens (`<EOC>`; paper, A.1.4)",
        "the gate (paper, A.9)",
    ):
        assert problems("line", line), line
    assert not problems("line", "| B.1.2 images padded with the mean | `a` | `b` |")
