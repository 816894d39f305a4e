"""launch/demo.sh at its real size learns what the README says, within the memory of a laptop.

Takes about ten minutes. With FLAMINGO_DEMO=DIR (absolute) the tests use a demo that has run
already: its stages are skipped, only its evaluation runs again.
"""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> pathlib.Path:
    """The output directory of a finished demo."""
    output = pathlib.Path(os.environ.get("FLAMINGO_DEMO") or tmp_path_factory.mktemp("demo"))
    options = output / "options"
    seed = re.search(r"seed=(\d+)", options.read_text())[1] if options.exists() else "1"
    done = subprocess.run(
        ["launch/demo.sh", f"--output={output}", f"--config.seed={seed}"],
        cwd=ROOT,
        env={**os.environ, "FLAMINGO_VENV": sys.prefix, "XLA_FLAGS": ""},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-5000:]}"
    return output


@pytest.fixture(scope="module")
def value(demo):
    """A function that returns a number of the report by task, shots and metric."""
    rows = json.loads((demo / "report" / "results.json").read_text())
    assert {row["n"] for row in rows} == {400}
    table = {(row["task"], row["shots"], row["metric"]): row["value"] for row in rows}
    return lambda *key: table[key]


def test_format_is_learnt_from_one_example(value):
    assert value("format", 0, "exact_match") <= 0.45
    assert all(value("format", shots, "exact_match") >= 0.90 for shots in (1, 2, 4, 8))


def test_new_names_are_bound(value):
    assert value("bind2", 4, "exact_match") >= 0.70
    assert value("bind2", 8, "exact_match") >= 0.75


@pytest.mark.parametrize("shots", [4, 8])
def test_without_labels_or_images_nothing_is_learnt(value, shots):
    """By ranking, `bind2` stays at the chance of two names, and `format` at a guess or below."""
    for control in ("shuffled", "hidden"):
        assert abs(value(f"bind2_{control}", shots, "ranking") - 0.5) <= 0.1
        assert value(f"format_{control}", shots, "ranking") <= 0.45


def test_the_encoder_finds_the_captions_of_pictures_it_never_saw(demo):
    """Retrieval in both directions within batches of 64 different scenes, over all full batches."""
    found = json.loads((demo / "contrastive" / "report" / "results.json").read_text())
    rows = {row["metric"]: row for row in found if row["task"] == "world_retrieval"}
    for metric in ("image_to_text_recall_at_1", "text_to_image_recall_at_1"):
        assert rows[metric]["value"] >= 0.9
        assert rows[metric]["n"] >= 3000


def test_peak_memory_is_below_4_gib(demo):
    usage = [line.split() for line in (demo / "usage.txt").read_text().splitlines()]
    assert {line[0] for line in usage} >= {
        "world",
        "contrastive",
        "language_model",
        "flamingo",
        "evaluation",
    }
    assert all(float(line[3]) < 4096 for line in usage)
