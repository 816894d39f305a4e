"""The report of launch/model_sizes.sh, from results that a test writes."""

import dataclasses
import json

import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report import joined
from flamingo_jax.evaluation.report.joined_runs import read_run
from flamingo_jax.evaluation.report.model_sizes import model_sizes

TASKS = ("format", "bind2")
SHOTS = (0, 4, 8)


def write_run(directory, name, seed, value, tasks=TASKS, shots=SHOTS):
    """Writes results that grow by 0.01 with each shot; returns the word of --report."""
    output = directory / f"{name}{seed}"
    output.mkdir(parents=True)
    common = (400, seed, "random", 1, "greedy", "nowhere", 700)
    rows = [
        Row(task, "test", number, metric, value + 0.01 * number + 0.1 * (task == "bind2"), *common)
        for task in tasks
        for number in shots
        for metric in ("exact_match", "ranking")
    ]
    (output / "results.json").write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    return f"{name}={output}"


def report(words, **sizes):
    """Returns the report of runs, of which `sizes` are the weights by row."""
    runs = [read_run(word) for word in words]
    return model_sizes([dataclasses.replace(run, parameters=sizes.get(run.row)) for run in runs])


def test_means_are_over_tasks_and_seeds_and_sizes_in_their_order(tmp_path):
    values = {"large": (0.5, 0.7), "small": (0.1, 0.3)}
    words = [
        write_run(tmp_path, name, seed, value)
        for name, seeds in values.items()
        for seed, value in enumerate(seeds, 1)
    ]
    table, pictures = report(words, small=421710, large=1656902)
    assert table.table.head == (
        *("", "weights", "format, 8 shots", "bind2, 8 shots"),
        *("mean, 0 shots", "mean, 4 shots", "mean, 8 shots", "seeds"),
    )
    assert [row.cells for row in table.table.rows] == [
        ("small", "421,710", "0.280", "0.380", "0.250", "0.290", "0.330", "2"),
        ("large", "1,656,902", "0.680", "0.780", "0.650", "0.690", "0.730", "2"),
    ]
    (axis,) = pictures["model_sizes.png"].axes
    drawn = {line.get_label(): [float(y) for y in line.get_ydata()] for line in axis.get_lines()}
    assert drawn["large"] == pytest.approx([0.65, 0.69, 0.73])
    assert axis.get_title(loc="left") == "mean over 2 tasks"


def test_tasks_and_shots_that_not_all_have_are_left_out_and_named(tmp_path):
    words = [
        write_run(tmp_path, "small", 1, 0.1),
        write_run(tmp_path, "base", 1, 0.2, tasks=("format", "questions"), shots=(0, 8)),
    ]
    table, pictures = report(words, small=1, base=2)
    assert [row.cells for row in table.table.rows] == [
        ("small", "1", "0.180", "0.100", "0.140", "0.180", "1"),
        ("base", "2", "0.280", "0.200", "-", "0.280", "1"),
    ]
    assert any("base1: questions left out" in note for note in table.notes)
    assert any("small1: bind2 left out" in note for note in table.notes)
    lines = {line.get_label(): line for line in pictures["model_sizes.png"].axes[0].get_lines()}
    assert list(lines["base"].get_xdata()) == [0, 2]  # nothing is drawn at 4


def test_the_report_is_written(tmp_path):
    words = [write_run(tmp_path, "small", 1, 0.1)]
    text = joined.join("SIZES", words, tmp_path / "page")
    assert "Sizes of the tiny Flamingo" in text
    assert (tmp_path / "page" / "model_sizes.png").stat().st_size > 10_000


def test_runs_without_a_common_task_are_an_error(tmp_path):
    words = [
        write_run(tmp_path, "small", 1, 0.1, tasks=("format",)),
        write_run(tmp_path, "base", 1, 0.1, tasks=("bind2",)),
    ]
    with pytest.raises(ConfigError, match="no task in common; expected results of format, bind2"):
        report(words)
