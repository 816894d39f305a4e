"""The table of launch/ablations.sh, from results that a test writes."""

import dataclasses
import json

import pytest

from configs.ablations import tiny
from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report import joined, tiny_ablations
from flamingo_jax.evaluation.report.joined_runs import read_run
from flamingo_jax.evaluation.report.published_ablations import ABLATIONS


def write_run(directory, name, seed, value, tasks=tiny_ablations.TASKS, n=400, more=()):
    """Writes the results of a row; returns the word of --report."""
    output = directory / f"{name}{seed}"
    output.mkdir(parents=True)
    values = {(task, "exact_match"): value for task in tasks}
    values |= {(task, "ranking"): 0.4 for task in tiny_ablations.CONTROLS}
    rows = [
        Row(task, "test", 4, metric, each, n, seed, "random", 1, "greedy", "nowhere", 700)
        for (task, metric), each in values.items()
    ]
    rows += [dataclasses.replace(row, **fields) for fields in more for row in rows]
    (output / "results.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    return f"{name}={output}"


@pytest.fixture
def words(tmp_path):
    values = {
        "base": (0.8, 0.6),
        "no_gate": (0.7, 0.52),  # worse, as in the paper
        "all_images": (0.9, 0.7),  # better, not as in the paper
        "small_vision": (0.79, 0.6),
        "something_new": (0.5, 0.3),  # not in the paper
    }
    return [
        write_run(tmp_path, name, seed, value)
        for name, seeds in values.items()
        for seed, value in enumerate(seeds, 1)
    ]


def test_rows_have_their_differences_and_signs(words):
    table, _ = tiny_ablations.tiny_ablations([read_run(word) for word in words])
    lines = {row.cells[0]: row.cells for row in table.table.rows}
    in_order = ["base", "no_gate", "small_vision", "all_images", "something_new"]  # of the paper
    assert list(lines) == in_order
    assert lines["base"][1] == "0.700" and lines["base"][7:9] == ("70.7", "-")
    assert lines["no_gate"][6:] == ("-0.090 +-0.006", "-4.2", "as the paper", "0.40 / 0.40", "2")
    assert lines["all_images"][6:9] == ("+0.100 +-0.006", "-7.2", "other")
    assert lines["small_vision"][6:9] == ("-0.005 +-0.006", "-8.0", "as the paper ~")
    assert lines["something_new"][7:9] == ("-", "-")
    assert table.notes[0].startswith("2 of 3 rows have the paper's sign")


def test_the_report_is_written(words, tmp_path):
    text = joined.join("TINY", words, tmp_path / "page")
    assert "2 of 3 rows" in text
    assert "no_gate" in (tmp_path / "page" / "tiny_ablations.html").read_text()
    assert (tmp_path / "page" / "tiny_ablations.png").stat().st_size > 10_000


def test_every_row_of_the_script_is_one_of_the_papers():
    assert {tiny_ablations.counterpart(row) for row in tiny.ROWS} <= set(ABLATIONS)


def test_a_run_that_lacks_a_task_or_is_there_twice_is_left_out_and_named(words, tmp_path):
    cut = write_run(tmp_path, "mlp", 1, 0.5, tasks=tiny_ablations.TASKS[1:])
    twice = write_run(tmp_path / "again", "no_gate", 1, 0.9)
    table, _ = tiny_ablations.tiny_ablations([read_run(word) for word in (*words, cut, twice)])
    assert "mlp" not in {row.cells[0] for row in table.table.rows}
    assert any("mlp1: left out, it has no format at 4 examples" in note for note in table.notes)
    assert any("another run has the row 'no_gate', seed 1" in note for note in table.notes)


def test_a_run_that_has_no_base_of_its_seed_is_named(words, tmp_path):
    alone = [write_run(tmp_path, "mlp", 7, 0.5), write_run(tmp_path, "no_gate", 8, 0.1)]
    table, _ = tiny_ablations.tiny_ablations([read_run(word) for word in (*words, *alone)])
    lines = {row.cells[0]: row.cells for row in table.table.rows}
    assert "mlp" not in lines and lines["no_gate"][6].startswith("-0.090")
    for name, seed in (("mlp7", 7), ("no_gate8", 8)):
        note = f"{name}: left out, no run of the base has the seed {seed}."
        assert any(each.endswith(note) for each in table.notes)


def test_other_numbers_of_queries_are_named(words, tmp_path):
    few = write_run(tmp_path, "mlp", 1, 0.5, n=16)
    table, _ = tiny_ablations.tiny_ablations([read_run(word) for word in (*words, few)])
    (note,) = [each for each in table.notes if "numbers of queries" in each]
    assert "mlp1: other" in note and "format 16 and 400" in note


def test_results_with_rices_or_an_ensemble_do_not_count(words, tmp_path):
    more = [{"value": 0.99, "selection": "rices"}, {"value": 0.98, "ensemble": 6}]
    word = write_run(tmp_path, "mlp", 1, 0.5, more=more)
    table, _ = tiny_ablations.tiny_ablations([read_run(word) for word in (*words, word)])
    lines = {row.cells[0]: row.cells for row in table.table.rows}
    assert lines["mlp"][6].startswith("-0.300")


def test_without_the_base_there_are_no_differences(words):
    with pytest.raises(ConfigError, match="No run of the row base has results"):
        tiny_ablations.tiny_ablations([read_run(word) for word in words if "base" not in word])
