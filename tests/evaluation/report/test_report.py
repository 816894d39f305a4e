"""The report: tables to the letter.

Pictures by what they show (lines, labels, text), not by their pixels.
"""

import dataclasses
import itertools
import json

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.core.paths import PathError
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report import curves, sample_figure
from flamingo_jax.evaluation.report.report_writer import markdown_table, text_table, write_report
from flamingo_jax.evaluation.report.training_logs import read_log, training_logs
from tests.evaluation.answers import answered


def row(task, shots, metric, value):
    return Row(task, "test", shots, metric, value, 200, 1, "random", 1, "greedy", "runs/x", 700)


ROWS = [
    row(task, shots, metric, value + 0.1 * (metric == "ranking"))
    for task, values in {
        "bind2": (0.0, 0.8),
        "bind2_hidden": (0.1, 0.4),
        "format": (0.25, 0.9),
    }.items()
    for shots, value in zip((0, 4), values, strict=True)
    for metric in ("exact_match", "ranking")
]
LOG = [
    {
        "step": step,
        "loss": 2.0 / step,
        "gates/attention": [-0.1 * step, 0.01 * step],
        "gates/dense": [0.0, 0.02 * step],
    }
    for step in range(1, 11)
]


def sample(task="bind2", shots=1, text="dax", masked=False):
    image = np.full((8, 8, 3), 90, np.uint8)
    parts = (*(image, "this is a dax<EOC>") * shots, image, "this is a")
    return answered(
        "q",
        "dax",
        text,
        ("dax", "wug"),
        (-1.0, -2.0),
        task=task,
        shots=shots,
        parts=parts,
        masked=masked,
    )


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_text_table():
    assert text_table(ROWS) == (
        "exact match / ranking; n = 200 per cell, seed 1; runs/x at step 700\n"
        "\n"
        "task \\ shots            0            4\n"
        "--------------------------------------\n"
        "bind2         0.00 / 0.10  0.80 / 0.90\n"
        "bind2_hidden  0.10 / 0.20  0.40 / 0.50\n"
        "format        0.25 / 0.35  0.90 / 1.00\n"
    )


def test_markdown_table_marks_what_was_not_run():
    table = markdown_table([*ROWS, row("lm_lookup", 4, "nll", 0.25)])
    assert "| task \\ shots | 0 | 4 |\n| --- | ---: | ---: |\n" in table
    assert "| bind2 | 0.00 / 0.10 / - | 0.80 / 0.90 / - |\n" in table
    assert "| lm_lookup | - / - / - | - / - / 0.25 |\n" in table


def test_tasks_share_a_panel_with_their_controls():
    groups = curves.families(["format", "bind2_held_out", "bind2", "format_hidden", "my_task"])
    assert groups == {
        "format": {"": "format", "hidden": "format_hidden"},
        "bind2": {"held_out": "bind2_held_out", "": "bind2"},
        "my_task": {"": "my_task"},
    }


def test_curves_show_every_value():
    figure = curves.few_shot_curves(ROWS, {"bind2": 0.5})
    axes = figure.axes
    assert len(axes) == 4  # two metrics by two families
    assert [axis.get_title(loc="left") for axis in axes] == ["bind2", "format", "", ""]
    lines = {line.get_label(): list(line.get_ydata()) for line in axes[0].get_lines()}
    assert lines["the task"] == [0.0, 0.8] and lines["images hidden"] == [0.1, 0.4]
    assert [tick.get_text() for tick in axes[2].get_xticklabels()] == ["0", "4"]
    assert texts(axes[0]).count("guessing") == 1 and "guessing" not in texts(axes[1])


@pytest.mark.parametrize(("chance", "side"), [(0.75, "top"), (0.85, "bottom")])
def test_the_name_of_the_line_of_guessing_is_not_on_a_curve(chance, side):
    """The task's last value is 0.8: below a line just above it, the name would be on it."""
    axis = curves.few_shot_curves(ROWS, {"bind2": chance}).axes[0]
    (name,) = [text for text in axis.texts if text.get_text() == "guessing"]
    assert name.get_verticalalignment() == side


def test_gates_are_drawn_without_their_arbitrary_sign():
    figure = curves.gate_curves(LOG)
    first = figure.axes[0].get_lines()[0]
    np.testing.assert_allclose(first.get_ydata(), 0.1 * np.arange(1, 11))
    assert "layer 1" in texts(figure.axes[0])
    assert curves.gate_curves([{"step": 1, "loss": 2.0}]) is None


def test_labels_of_many_layers_are_few_and_apart():
    placed = curves._labelled(np.linspace(0.0, 0.2, 40), 0.01)
    assert 4 <= len(placed) <= 8
    # Both panels have the heights of the larger gates; a log of one report has closed gates.
    for log in (
        [{"step": s, "gates/attention": [0.9] * 4, "gates/dense": [0.01] * 4} for s in (1, 2)],
        [{"step": 1, "gates/attention": [0.0] * 4}],
    ):
        figure = curves.gate_curves(log, "mine")
        assert "mine" in figure.get_suptitle()
        figure.canvas.draw()
        for axis in figure.axes:
            boxes = [text.get_window_extent() for text in axis.texts]
            assert len(boxes) == 4
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_losses_have_a_line_for_each_dataset():
    log = [{"step": s, "loss": 3.0, "pages/loss": 1.0 + s, "pairs/loss": 2.0} for s in range(5)]
    figure = curves.loss_curves({"flamingo": log, "contrastive": LOG, "empty": []})
    legends = [
        [text.get_text().split()[0] for text in axis.get_legend().get_texts()]
        for axis in figure.axes
    ]
    assert legends == [["pages", "pairs"], ["loss"]]
    assert curves.loss_curves({"empty": []}) is None


def test_values_of_another_kind_are_left_out():
    """A damaged row of metrics.jsonl costs its point, and not the report."""
    odd = [{"step": 9, "loss": [1.0]}, {"step": 10, "loss": 10**400}]
    assert list(curves._losses([*odd, {"step": 11, "loss": 2.0}])["loss"]) == [(11, 2.0)]
    assert curves.loss_curves({"a": odd}) is None
    name = "gates/attention"
    values = [[[1]], [], [0.1], [1, 2], 3, [0.1, 0.2]]
    log = [{"step": step, name: each} for step, each in enumerate(values)]
    assert list(curves._gates(log, name)) == [3, 5]
    assert curves.gate_curves(log) is not None and curves.gate_curves(log[:2]) is None


def test_the_figure_of_samples_shows_the_answers():
    shown = texts(
        sample_figure.draw(
            [sample(), sample("bind2_hidden", text="wug", masked=True), sample(text="")], 8
        )
    )
    assert (
        "dax ✓" in shown and "wug ✗" in shown and "(nothing) ✗" in shown and "right: dax" in shown
    )
    assert shown.count("hidden") == 1 + 2  # the name of the control, and both of its images
    assert shown.count("1 shot") == 3


def test_the_figure_has_each_task_at_its_largest_number_of_shots():
    samples = [
        sample(task, shots)
        for task in ("format", "bind2", "format_hidden")
        for shots in (0, 4, 8)
        for _ in range(3)
    ]
    chosen = sample_figure.choose(samples)
    assert [s.task for s in chosen] == ["format"] * 2 + ["format_hidden"] * 2 + ["bind2"] * 2
    assert {s.shots for s in chosen} == {4}
    assert [s.shots for s in sample_figure.choose([sample("format", 8)])] == [8]


def test_write_report(tmp_path):
    log = tmp_path / "metrics.jsonl"
    log.write_text("\n".join(map(json.dumps, LOG)))
    written = write_report(
        tmp_path / "report",
        ROWS,
        [sample()],
        {"flamingo": log},
        chance={"bind2": 0.5},
        image_size=8,
    )
    names = {"results.json", "table.md", "table.txt", "predictions.html"}
    names |= {"few_shot.png", "gates.png", "losses.png", "samples.png"}
    assert {path.name for path in written} == names
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == [
        dataclasses.asdict(each) for each in ROWS
    ]
    for path in written:
        if path.suffix == ".png":
            with PIL.Image.open(path) as picture:
                assert min(picture.size) > 300


def test_a_report_without_training_has_no_training_curves(tmp_path):
    assert {path.name for path in write_report(tmp_path, ROWS)} == {
        "results.json",
        "table.md",
        "table.txt",
        "few_shot.png",
    }


def test_a_report_of_benchmarks(tmp_path):
    """Pictures in the units of papers in place of those of the tiny world.

    Both, if both were run.
    """
    benchmark = dataclasses.replace(row("star", 4, "ranking", 0.4), decoding="log_likelihood")
    names = {
        path.name for path in write_report(tmp_path, [benchmark], [sample("star")], image_size=8)
    }
    assert names == {"results.json", "table.md", "table.txt", "predictions.html", "benchmarks.png"}
    written = write_report(tmp_path, [benchmark, *ROWS], [sample("star"), sample()], image_size=8)
    assert {path.name for path in written} == {*names, "few_shot.png", "samples.png"}
    assert (
        "bind2" in (tmp_path / "table.txt").read_text()
        and "### STAR" in (tmp_path / "table.md").read_text()
    )


def test_a_report_without_results_shows_the_predictions(tmp_path):
    """All right answers may be hidden: a server has them."""
    names = {path.name for path in write_report(tmp_path, [], [sample("vqav2")], image_size=8)}
    assert names == {"results.json", "table.md", "table.txt", "predictions.html"}
    assert "not known" in (tmp_path / "table.md").read_text()


def test_logs_of_a_run_and_of_its_towers(tmp_path):
    runs = {
        "language_model": {},
        "contrastive": {},
        "flamingo": {
            "lm": {"path": f"{tmp_path}/language_model/export"},
            "vision": {"path": f"{tmp_path}/contrastive/export"},
        },
    }
    for stage, frozen in runs.items():
        (tmp_path / stage / "export").mkdir(parents=True)
        (tmp_path / stage / "config.json").write_text(
            json.dumps({"stage": stage, "frozen": frozen})
        )
        (tmp_path / stage / "metrics.jsonl").write_text(
            '{"step": 1, "loss": 2.0}\n{"step": 2, "loss": 1.0}\n{"step": 2, "acc": 0.5}\n{"ste'
        )
    for checkpoint in ("flamingo", "flamingo/export", "flamingo/checkpoints/700"):
        assert list(training_logs(tmp_path / checkpoint)) == [
            "contrastive",
            "language_model",
            "flamingo",
        ]
    assert read_log(tmp_path / "flamingo" / "metrics.jsonl") == [
        {"step": 1, "loss": 2.0},
        {"step": 2, "loss": 1.0, "acc": 0.5},
    ]
    (tmp_path / "contrastive" / "metrics.jsonl").unlink()
    assert list(training_logs(tmp_path / "flamingo")) == ["language_model", "flamingo"]
    for damaged in ("", "null", "[3]", "{}", '{"stage": "flamingo", "frozen": {"lm": 3}}'):
        (tmp_path / "flamingo" / "config.json").write_text(damaged)
        assert training_logs(tmp_path / "flamingo") == {}
    assert training_logs(tmp_path / "elsewhere" / "a" / "b") == {}
    with pytest.raises(PathError, match="There is no log"):
        read_log(tmp_path / "nowhere.jsonl")
