"""Tables and figures that join runs: numbers to the digit, and a line for whatever is missing."""

import csv
import dataclasses
import json

import pytest

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report import joined, overview_figure
from flamingo_jax.evaluation.report.joined_runs import read_run
from flamingo_jax.evaluation.report.overview_figure import MODELS, TASKS

DEV = {
    "okvqa": ("okvqa_accuracy", 0.35),
    "vqav2_val": ("vqa_accuracy", 0.5),
    "coco": ("cider", 0.801),
    "msvdqa": ("top1", 0.3),
    "vatex": ("cider", 0.45),
}
VALIDATION = "validation, from train"


def row(task, metric, value, shots=4, split=VALIDATION, **fields):
    plain = Row(task, split, shots, metric, value, 1024, 1, "random", 1, "beam", "nowhere", 700)
    return dataclasses.replace(plain, **fields)


def rows(scale=1.0, shots=4, **fields):
    return [
        row(task, metric, value * scale, shots, **fields) for task, (metric, value) in DEV.items()
    ]


def evaluation(directory, results):
    directory.mkdir(parents=True, exist_ok=True)
    lines = [dataclasses.asdict(each) for each in results]
    (directory / "results.json").write_text(json.dumps(lines))
    return str(directory)


def workdir(directory, name, lines=(), parameters=None):
    """A training run: its config, log and export, as far as reports read them."""
    directory.mkdir(parents=True)
    (directory / "config.json").write_text(json.dumps({"name": name}))
    log = [{"step": i + 1, "step_seconds": 0.5 + i, **line} for i, line in enumerate(lines)]
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    if parameters:
        (directory / "export").mkdir()
        card = {
            "kind": "flamingo",
            "config": {},
            "preprocessing": {},
            "content_hash": "",
            "step": 1,
        }
        (directory / "export" / "model.json").write_text(
            json.dumps({**card, "parameters": parameters})
        )
    return str(directory)


def lines_of(text, word):
    return [line.split() for line in text.splitlines() if word in line]


def test_table_3_has_each_run_below_its_row(tmp_path):
    """With its size, its measured and its planned time, its scores, and what it is to the base."""
    run = workdir(tmp_path / "run", "flamingo_3b_no_gate", [{}, {}, {}], parameters=3_212_000_000)
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"step_seconds": 1.234}))
    base = evaluation(tmp_path / "base", rows())
    gate = evaluation(tmp_path / "gate", rows(0.9, checkpoint=f"{run}/export"))
    text = joined.join("TABLE3", [f"base={base}", gate], tmp_path / "out")
    found = [line.strip().split("  ")[0] for line in text.splitlines()]
    assert found.index(base) == found.index("Flamingo-3B: short training") + 1
    assert found.index(gate) == found.index("(iii) tanh gating: no") + 1
    published = "3.2B 1.74 s 78.4 40.5 52.9 35.9 47.5 66.5 -4.2".split()
    assert lines_of(text, "(iii) tanh")[0][-len(published) :] == published
    # 100 x the mean of 80.1/143.3, 35/54.4, 50/80.2, 30/47.9, 45/76.3
    assert lines_of(text, f"{base} ")[0] == [
        base,
        "-",
        "-",
        *"80.1 35.0 50.0 30.0 45.0 60.8".split(),
    ]
    own = "3.2B 1.50 s measured, 1.23 s planned 72.1 31.5 45.0 27.0 40.5 54.8 -6.1".split()
    assert lines_of(text, f"{gate} ")[0] == [gate, *own]
    assert f"{base}: its checkpoint nowhere is not here, so its size and step time" in text
    assert f"{gate}:" not in text
    with (tmp_path / "out" / "table_3.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [line["overall"] for line in table if line["of"] == "run"] == ["60.8", "54.8"]
    assert len([line for line in table if line["of"] == "paper"]) == 18
    page = (tmp_path / "out" / "table_3.html").read_text()
    assert page.count('class="run"') == 2 and "<td>60.8</td>" in page
    assert f"| **  {gate}** | **3.2B** |" in (tmp_path / "out" / "table_3.md").read_text()


def test_nothing_is_skipped_silently(tmp_path):
    """What is missing, foreign, or of another protocol has a line."""
    part = evaluation(tmp_path / "part", [*rows()[:2], row("coco", "cider", 0.9, shots=8)])
    rices = evaluation(tmp_path / "rices", rows(selection="rices"))
    test = evaluation(tmp_path / "test", rows(split="test"))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "results.json").write_text('[{"task": "coco"}]')
    runs = [
        f"base={part}",
        f"mlp={rices}",
        f"clip={test}",
        f"p_next_1={test}",
        test,
        f"mine={test}",
    ]
    text = joined.join("TABLE3", [*runs, f"{tmp_path}/damaged", f"{tmp_path}/none"], None)
    assert f"{part}: no result of coco, msvdqa, vatex at 4 shots." in text
    assert f"{rices}: no result of coco, okvqa, vqav2, msvdqa, vatex at 4 shots." in text
    assert f"{test}: not of validation queries, as the paper's: okvqa val," in text
    assert f"{test}: the row 'p_next_1' is in Table 10." in text
    assert f"{test}: its config's name is that of no ablation. Give ROW={test}" in text
    assert f"{test}: neither Table 3 nor Table 10 has the row 'mine'." in text
    assert f"{tmp_path}/damaged/results.json is damaged: Field result 0.split is missing" in text
    assert f"{tmp_path}/none: there is no results.json and no metrics.jsonl." in text
    assert "No run of the base model has all five scores" in text
    assert len(lines_of(text, f"{test} ")) == 4  # a line of its own for each time it is named


def test_table_10_says_what_is_misprinted():
    text = joined.join("table10", [], None)
    assert "3.2B 4.70 s* 74.5 41.6 52.7 31.4 35.8 61.4 -9.3" in " ".join(text.split())
    assert "(iv) LM pretraining: C4: MSVDQA is 30.9" in text
    assert "60.6" in lines_of(text, "pretraining: C4 ")[0]


def test_an_evaluation_during_training_counts(tmp_path):
    """The newest one, where no evaluation of its own was run."""
    older = {"evaluate/coco/4/cider": 0.5, "evaluate/okvqa/4/okvqa_accuracy": 0.1}
    newer = {"evaluate/coco/4/cider": 0.8, "loss": None}
    run = read_run(workdir(tmp_path / "run", "flamingo_3b_mlp", [older, newer, {"loss": 1.0}]))
    assert [(each.task, each.shots, each.value, each.step) for each in run.results] == [
        ("coco", 4, 0.8, 2)
    ]
    assert (run.row, run.measured_seconds, run.parameters) == ("mlp", 1.5, None)


def test_an_evaluation_during_training_has_the_seed_of_its_run(tmp_path):
    name = workdir(tmp_path / "run", "tiny_flamingo_mlp", [{"evaluate/format/4/exact_match": 0.8}])
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps({**config, "seed": 2}))
    assert [each.seed for each in read_run(name).results] == [2]


def test_a_log_that_cannot_be_read_is_a_problem_of_its_run_alone(tmp_path):
    (tmp_path / "run" / "metrics.jsonl").mkdir(parents=True)
    run = read_run(str(tmp_path / "run"))
    assert not run.results and "metrics.jsonl: it is a directory" in run.problems[0]


def test_a_plan_counts_parameters_where_there_is_no_export(tmp_path):
    name = workdir(tmp_path / "run", "flamingo_3b_mlp", [{"evaluate/coco/4/cider": 0.8}])
    plan = {"step_seconds": 2.0, "parameters": {"lm": 1000, "resampler": 24}}
    (tmp_path / "run" / "plan.json").write_text(json.dumps(plan))
    run = read_run(name)
    assert (run.parameters, run.planned_seconds) == (1024, 2.0)
    (tmp_path / "run" / "plan.json").write_text("{")
    assert "plan.json is not valid JSON" in read_run(name).problems[0]


def test_table_2_has_fine_tuned_runs_below_their_benchmark(tmp_path):
    tuned = evaluation(
        tmp_path / "tuned",
        [
            row("coco", "cider", 1.214, 0, "Karpathy test"),
            row("vqav2_val", "vqa_accuracy", 0.7, 0, "val"),
            row("easy_vqa", "exact_match", 0.97, 0, "test"),
            row("coco", "cider", 1.0, 4, "Karpathy test"),
        ],
    )
    few = evaluation(tmp_path / "few", rows())
    text = joined.join("TABLE2", [tuned, few], None)
    found = [" ".join(line.split()) for line in text.splitlines()]
    assert (
        found.index(f"{tuned}: COCO Karpathy test 121.4")
        == found.index("COCO test 113.8 138.1 149.6†") + 1
    )
    assert f"{tuned}: VQAv2 (val) val 70.0" in found
    assert f"{tuned}: vqav2_val is of val, Table 2 of test-dev and test-std" in text
    assert f"{tuned}: Table 2 does not have easy_vqa." in text
    assert f"{tuned}: results at 4 shots are not of this table." in text
    assert f"{few}: no result at 0 shots in the metric of a benchmark." in text
    assert "Table 2 prints 36.0, Table 1 37.9" in text


def test_figure_2_draws_the_published_numbers():
    """6 of 15 tasks above the fine-tuned state of the art; larger and more examples are better."""
    numbers = overview_figure.overview([])
    assert numbers.tasks == TASKS and len(TASKS) == 15
    above = [task for task in TASKS if numbers.at("Flamingo-80B", task, 32) > 100]
    assert above == ["okvqa", "msvdqa", "flickr30k", "ivqa", "star", "nextqa"]
    assert numbers.at("Flamingo-80B", "visdial", 32) == pytest.approx(100 * 56.8 / 75.2)
    assert len(numbers.before) == 9  # where results with few examples were published before
    left, right = overview_figure.draw(numbers).axes
    widths = [bar.get_width() for bar in left.patches]
    assert widths == sorted(widths) and widths[-1] == pytest.approx(100 * 33.5 / 25.2)
    assert left.get_yticklabels()[-1].get_text() == "NextQA"
    lines = {line.get_label(): list(line.get_ydata()) for line in right.get_lines()}
    assert lines["Flamingo-3B"][-1] == pytest.approx(80.00, abs=0.01)
    assert all(line == sorted(line) for line in lines.values())
    assert all(
        small < large
        for model, larger in (("Flamingo-3B", "Flamingo-9B"), ("Flamingo-9B", "Flamingo-80B"))
        for small, large in zip(lines[model], lines[larger], strict=True)
    )


def test_figure_2_compares_runs_on_the_tasks_that_all_have(tmp_path):
    all_shots = [each for shots in (0, 4, 8, 16, 32) for each in rows(1 + shots / 100, shots)]
    one = evaluation(tmp_path / "one", [*all_shots, row("star", "ranking", 0.4, 0)])
    two = evaluation(tmp_path / "two", rows(0.5))
    numbers = overview_figure.overview([read_run(one), read_run(two)])
    assert numbers.tasks == ("okvqa", "vqav2", "coco", "msvdqa", "vatex")
    notes = " ".join(numbers.notes)
    assert f"{one}: STAR left out, which not all runs have." in notes
    assert f"{two}: not measured with 32 examples: OKVQA, VQAv2, COCO, MSVDQA, VATEX." in notes
    left, right = overview_figure.draw(numbers).axes
    lines = {line.get_label(): list(line.get_ydata()) for line in right.get_lines()}
    assert len(lines[one]) == 5 and lines[one][0] == pytest.approx(60.8, abs=0.05)
    assert lines[two] == [pytest.approx(60.8 / 2, abs=0.05)]  # 4 shots
    dots = {line.get_label(): list(line.get_xdata()) for line in left.get_lines()}
    assert sorted(dots[one])[-1] == pytest.approx(132 * 0.35 / 0.544)
    assert two not in dots
    alone = overview_figure.overview(
        [read_run(evaluation(tmp_path / "no", [row("x", "top1", 1.0)]))]
    )
    assert alone.tasks == TASKS and len(alone.models) == 3
    shares = numbers.models[one]
    for length in (20, 45, 75, 130):
        own = {f"{i}{'/runs/flamingo_3b_every_2nd' * 5}"[:length]: shares for i in range(2)}
        known = dict.fromkeys(MODELS, shares)
        figure = overview_figure.draw(dataclasses.replace(numbers, models={**known, **own}))
        figure.canvas.draw()
        (legend,) = figure.legends
        assert legend.get_window_extent().x1 < figure.get_window_extent().x1, length
    assert "no result of a task of Table 1." in " ".join(alone.notes)


def test_figure_6_draws_the_gates_of_each_run(tmp_path):
    gates = [{"gates/attention": [-0.1 * i, 0.25 * i]} for i in range(3)]
    run = workdir(tmp_path / "run", "flamingo_3b", gates)
    other = workdir(tmp_path / "other", "lm", [{"loss": 1.0}])
    text = joined.join("FIGURE6", [run, other], tmp_path / "out")
    assert lines_of(text, f"{run} ")[0] == [
        run,
        "cross-attention",
        "gates",
        "figure_6_1.png",
        "0.20",
        "0.50",
    ]
    assert f"{other}: it has no log with gates." in text
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *(f"figure_6.{suffix}" for suffix in ("md", "txt", "csv", "html")),
        "figure_6_1.png",
    }


@pytest.mark.parametrize(
    ("name", "runs", "message"),
    [
        ("TABLE4", [], "--report=TABLE4: expected TABLE2, TABLE3, TABLE10, FIGURE2, FIGURE6"),
        ("TABLE3", ["nowhere"], "nowhere: there is no results.json and no metrics.jsonl"),
        ("TABLE3", ["a", ""], "--report=TABLE3,a,: '' is no directory; expected NAME,RUN,RUN"),
        ("FIGURE6", ["base="], "'base=' is no directory"),
        ("SIZES", ["small=a", "base=b", "small=a/"], "--report=SIZES: small=a is given 2 times."),
    ],
)
def test_a_report_that_cannot_be_made_is_one_line(name, runs, message):
    with pytest.raises(ConfigError, match=message):
        joined.join(name, runs, None)


def test_the_program_joins_without_a_model(run_program, tmp_path):
    base = evaluation(tmp_path / "base", rows())
    arguments = ("-m", "flamingo_jax.evaluate")
    done = run_program(*arguments, f"--report=TABLE3,base={base}", f"--output={tmp_path}/out")
    assert f"{tmp_path}/out/table_3.md" in done.stdout
    done = run_program(*arguments, "--report=TABLE4", status=1)
    assert (
        done.stderr.startswith("ConfigError: --report=TABLE4: expected")
        and "Traceback" not in done.stderr
    )
    done = run_program(*arguments, f"--output={tmp_path}", status=1)
    assert done.stderr == "--checkpoint, --config are missing. --help lists the flags.\n"
