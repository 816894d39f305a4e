"""The page of launch/ablations.sh, from reports that a test writes."""

import json

import pytest

from flamingo_jax.core.paths import PathError
from flamingo_jax.evaluation.report import tiny_ablations
from flamingo_jax.evaluation.report.published_ablations import ABLATIONS

TASKS = ("format", "bind2", "bind4", "format_held_out", "bind2_held_out")


def write_run(directory, row, seed, value, control=0.4):
    report = directory / f"seed{seed}" / "rows" / row / "report"
    report.mkdir(parents=True)
    rows = [{"task": task, "metric": "exact_match", "value": value} for task in TASKS]
    rows += [
        {"task": f"{task}_shuffled", "metric": "ranking", "value": control}
        for task in ("format", "bind2")
    ]
    (report / "results.json").write_text(json.dumps(rows))


@pytest.fixture
def runs(tmp_path):
    for row, values in {
        "base": (0.8, 0.6),
        "no_gate": (0.7, 0.52),  # the paper's is worse too
        "all_images": (0.9, 0.7),  # the paper's is worse
        "small_vision": (0.79, 0.6),
        "something_new": (0.5, 0.3),  # not in the paper
    }.items():
        for seed, value in enumerate(values, 1):
            write_run(tmp_path, row, seed, value)
    return tmp_path


def test_rows_have_their_differences_and_signs(runs):
    lines = {
        row.cells[0]: row.cells
        for row in tiny_ablations.table(tiny_ablations.read(runs)).rows
    }
    assert lines["base"][1] == "0.700" and lines["base"][7] == "70.7"
    assert lines["no_gate"][6:10] == ("-0.090 +-0.006", "-4.2", "equal", "0.40 / 0.40")
    assert lines["all_images"][6:9] == ("+0.100 +-0.006", "-7.2", "not equal")
    assert lines["small_vision"][6:9] == ("-0.005 +-0.006", "-8.0", "equal ~")  # as NFNet-F0
    assert lines["something_new"][7:9] == ("-", "-")
    assert tiny_ablations.count_of_signs(tiny_ablations.read(runs)) == (2, 3)


def test_the_page_is_written(runs, tmp_path):
    text = tiny_ablations.write(runs, tmp_path / "page")
    assert "2 of 3 rows have the paper's sign." in text
    page = (tmp_path / "page" / "ablations.md").read_text()
    assert "| no_gate | -0.090 +-0.006 |" in page and "2 of 3 rows" in page
    stored = json.loads((tmp_path / "page" / "ablations.json").read_text())
    assert stored["differences"]["no_gate"]["bind2"]["by_seed"] == pytest.approx([-0.1, -0.08])
    assert (tmp_path / "page" / "ablations.png").stat().st_size > 10_000


def test_every_row_of_the_script_that_the_paper_has_is_compared_with_it():
    from configs.ablations import tiny

    known = {tiny_ablations.counterpart(row) for row in tiny.ROWS}
    assert known <= set(ABLATIONS)


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(PathError, match="has no report seedN/rows/base/report/results.json"):
        tiny_ablations.read(tmp_path)
    write_run(tmp_path, "base", 1, 0.5)
    file = tmp_path / "seed1" / "rows" / "base" / "report" / "results.json"
    file.write_text(json.dumps(json.loads(file.read_text())[1:]))
    with pytest.raises(PathError, match=r"not a report of launch/ablations.sh: it lacks \('format'"):
        tiny_ablations.read(tmp_path)
