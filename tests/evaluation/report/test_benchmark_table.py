"""The table with published results, to the letter; the curves, by the lines that they show."""

import dataclasses

import pytest

from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.registry import PAPER_BENCHMARKS
from flamingo_jax.evaluation.report import benchmark_table, report_writer
from flamingo_jax.evaluation.report.benchmark_curves import benchmark_curves
from flamingo_jax.evaluation.report.benchmark_table import own_setting
from flamingo_jax.evaluation.report.units import is_benchmark, unit


def row(task, shots, metric, value, **fields):
    plain = Row(task, "test", shots, metric, value, 5000, 1, "random", 1, "beam", "runs/x", 700)
    return dataclasses.replace(plain, **fields)


STAR = [row("star", 0, "ranking", 0.397), row("star", 16, "ranking", 0.25, n=7098)]
COCO = [row("coco", shots, "cider", value) for shots, value in ((0, 0.712), (4, 0.8395))]
DEV = {
    "okvqa": "okvqa_accuracy",
    "vqav2": "vqa_accuracy",
    "coco": "cider",
    "msvdqa": "top1",
    "vatex": "cider",
}


def texts(figure):
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def test_text():
    assert benchmark_table.text(STAR) == (
        "This run: runs/x at step 700, seed 1; beam.\n"
        "\n"
        "STAR: top-1 accuracy, %, 5000 to 7098 queries of val\n"
        "paper: test; 39.4 before Flamingo with few or no examples, 36.7 fine-tuned in 2022\n"
        "                         0      16\n"
        "  this run            39.7    25.0\n"
        "  Flamingo-3B [1]     39.6    40.1\n"
        "  Flamingo-9B [1]     41.8    42.4\n"
        "  Flamingo-80B [1]    39.7    41.1\n"
        "\n"
        "[1] Flamingo, arXiv 2204.14198 v2, Table 1 (ImageNet and Kinetics700: Table 7).\n"
        "STAR: the published numbers are of test, those of this run of val: they are not "
        "comparable to the last digit.\n"
    )


def test_groups_of_queries_are_lines():
    """A benchmark that is not of the paper has the unit of papers too."""
    rows = [
        row("scienceqa", 0, "ranking", 0.5, groups={"NAT": 0.75, "SOC": 0.25}),
        row("scienceqa", 4, "ranking", 0.6, groups={"NAT": 0.8, "SOC": 0.4}),
    ]
    assert is_benchmark("scienceqa", ["ranking"])
    lines = benchmark_table.text(rows).splitlines()
    assert lines[2:7] == [
        "scienceqa: top-1 accuracy, %, 5000 queries of test",
        "                      0       4",
        "  this run         50.0    60.0",
        "  this run, NAT    75.0    80.0",
        "  this run, SOC    25.0    40.0",
    ]


def test_markdown():
    written = benchmark_table.markdown(COCO)
    assert (
        "### COCO\n"
        "\n"
        "CIDEr-D x 100, 5000 queries of Karpathy test; paper: Karpathy test; 32.2 before Flamingo "
        "with few or no examples, 143.3 fine-tuned in 2022\n"
        "\n"
        "| shots | 0 | 4 |\n"
        "| --- | ---: | ---: |\n"
        "| **this run** | **71.2** | **84.0** |\n"
        "| Flamingo-3B [1] | 73.0 | 85.0 |\n"
    ) in written
    assert "| OpenFlamingo-3B [2] | 74.9 | 77.3 |\n" in written
    assert "| IDEFICS-80B [3] | 91.8 | 110.3 |\n" in written
    assert "RICES |" not in written  # the run chose at random
    notes = [line for line in written.splitlines() if line.startswith("- ")]
    assert [note[:5] for note in notes] == ["- [1]", "- [2]", "- [3]", "- CID"]


def test_blocks_are_in_the_order_of_the_paper_and_show_what_was_run():
    found = benchmark_table.sections(
        [
            row("my_captions", 4, "cider", 0.5),
            *STAR,
            row("vqav2_val", 4, "vqa_accuracy", 0.5),
            *COCO,
        ]
    )
    assert [block.title for block in found] == ["VQAv2 (val)", "COCO", "STAR", "my_captions"]
    assert [block.shots for block in found] == [(4,), (0, 4), (0, 16), (4,)]
    own, *others = found[3].lines
    assert own.values == {4: "50.0"} and not others and not found[3].paper
    assert "test-dev" in found[0].paper
    assert all(set(line.values) <= set(block.shots) for block in found for line in block.lines)


def test_settings_and_further_metrics_have_lines_of_their_own():
    rices = [row("coco", 4, "cider", 0.9, selection="rices")]
    (block,) = benchmark_table.sections([row("coco", 4, "exact_match", 0.1), *COCO, *rices])
    assert [(line.label, line.values) for line in block.lines if line.is_own] == [
        ("this run", {0: "71.2", 4: "84.0"}),
        ("this run, RICES", {4: "90.0"}),
        ("this run, exact match, %", {4: "10.0"}),
    ]
    assert "OpenFlamingo-9B, RICES [2]" in [line.label for line in block.lines]
    (ensembled,) = benchmark_table.sections(
        [row("imagenet", 16, "ranking", 0.5, selection="rices", ensemble=6)]
    )
    labels = [line.label for line in ensembled.lines]
    assert labels[0] == "this run, RICES, 6 orders"
    assert "Flamingo-80B, RICES, 5 per class, ensembling [1]" in labels
    assert not any(label.startswith("contrastive") for label in labels)  # 0 shots were not run


def test_each_split_is_named_and_a_difference_is_said():
    """Six of the paper's benchmarks are evaluated on val; STAR alone differs from the paper."""
    on_val = {"star", "okvqa", "textvqa", "visdial", "youcook2", "imagenet", "kinetics700"}
    for name, listed in PAPER_BENCHMARKS.items():
        now, then = (
            benchmark_table.sections([row(name, 0, listed.metric.name, 0.5, split=split)])
            for split in (listed.split("test"), "test")
        )
        assert now == then  # version 0.4.0 wrote "test" for each
        assert now[0].about.endswith("queries of val") == (name in on_val)
        assert any("they are not comparable" in note for note in now[0].notes) == (name == "star")
    for name in ("vqav2_val", "vizwiz_val"):
        (section,) = benchmark_table.sections([row(name, 0, "vqa_accuracy", 0.5, split="val")])
        assert section.about.endswith("5000 queries of val") and "test-dev" in section.paper
        assert any("published numbers are of test-dev" in note for note in section.notes)
    drawn = PAPER_BENCHMARKS["coco"].split("validation")
    (section,) = benchmark_table.sections([row("coco", 0, "cider", 0.5, split=drawn)])
    assert "queries of validation, from train" in section.about and len(section.notes) == 2


def test_another_size_of_the_support_set_is_another_line():
    rows = [
        row("imagenet", 16, "ranking", 0.5, num_support_per_class=32),
        row("imagenet", 16, "ranking", 0.6, num_support_per_class=5),
        row("imagenet", 16, "ranking", 0.4),  # of version 0.4.0
    ]
    labels = [line.label for line in benchmark_table.sections(rows)[0].lines if line.is_own]
    assert labels == ["this run", "this run, 5 per class"]
    assert own_setting(row("coco", 4, "cider", 0.5, num_support=100)) == "100 support examples"


def test_another_metric_than_the_papers_has_no_published_lines():
    (block,) = benchmark_table.sections([row("coco", 4, "exact_match", 0.1)])
    assert [line.label for line in block.lines] == ["this run"]
    assert block.about.startswith("exact match, %")


def test_overall_score_needs_all_five():
    rows = [row(task, 4, metric, 0.5) for task, metric in DEV.items()]
    rows += [row(task, 0, metric, 0.5) for task, metric in list(DEV.items())[:4]]
    total = benchmark_table.sections(rows)[-1]
    assert total.title == "Overall" and total.shots == (4,)
    expected = sum(50 / best for best in (54.4, 80.2, 143.3, 47.9, 76.3)) / 5 * 100
    assert total.lines[0].values == {4: f"{expected:.1f}"}
    assert [line.label for line in total.lines[1:]] == [
        "Flamingo-3B [1]",
        "Flamingo-9B [1]",
        "Flamingo-80B [1]",
    ]
    assert not any(line.is_own for line in total.lines[1:])
    assert "Overall" not in [
        block.title for block in benchmark_table.sections([r for r in rows if r.shots == 0])
    ]


def test_the_validation_split_of_vqav2_counts_for_the_overall_score():
    rows = [row(task, 4, metric, 0.5) for task, metric in DEV.items() if task != "vqav2"]
    rows.append(row("vqav2_val", 4, "vqa_accuracy", 0.25, split="val"))
    total = benchmark_table.sections(rows)[-1]
    expected = (sum(50 / best for best in (54.4, 143.3, 47.9, 76.3)) + 25 / 80.2) / 5 * 100
    assert total.title == "Overall" and total.lines[0].values == {4: f"{expected:.1f}"}
    both = benchmark_table.sections([row("vqav2", 4, "vqa_accuracy", 0.5), *rows])[-1]
    assert both.lines[0].values == {4: f"{expected + 25 / 80.2 / 5 * 100:.1f}"}


def test_notes_are_below_the_tables_that_need_them():
    (visdial,) = benchmark_table.sections([row("visdial", 32, "visdial_ndcg", 0.5)])
    assert any("32 shots are longer" in note for note in visdial.notes)
    assert [line.label for line in visdial.lines] == ["this run"]  # nobody reports 32 shots
    (fewer,) = benchmark_table.sections([row("visdial", 16, "visdial_ndcg", 0.5)])
    assert not fewer.notes
    (videos,) = benchmark_table.sections([row("msvdqa", 4, "top1", 0.5)])
    assert any("public in April 2022" in note for note in videos.notes)


def test_benchmarks_and_other_tasks_have_tables_of_their_own():
    bind = row("bind2", 4, "ranking", 0.75)
    both = report_writer.text_table([bind, *STAR])
    assert both.startswith("ranking; n = 5000 per cell")
    assert "\nbind2         0.75\n" in both
    assert both.endswith(benchmark_table.text(STAR))
    assert report_writer.markdown_table([bind]) in report_writer.markdown_table([bind, *COCO])
    assert (
        report_writer.text_table([])
        == report_writer.markdown_table([])
        == "No results: the right answers are not known here.\n"
    )


@pytest.mark.parametrize(
    ("task", "metric", "value", "shown"),
    [
        ("coco", "cider", 1.138, "113.8"),
        ("my_captions", "cider", 1.138, "113.8"),
        ("imagenet", "ranking", 0.773, "77.3"),
        ("bind2", "ranking", 0.773, "0.77"),
        ("lm_lookup", "nll", 1.5, "1.50"),
        ("mine", "my_metric", 0.5, "0.50"),
        ("coco", "cider", None, "-"),
    ],
)
def test_units(task, metric, value, shown):
    assert unit(task, metric).text(value) == shown


def test_what_is_a_benchmark():
    assert is_benchmark("star", ["ranking"]) and is_benchmark("mine", ["vqa_accuracy"])
    assert is_benchmark("vizwiz_val", [])
    assert not is_benchmark("bind2", ["exact_match", "ranking"]) and not is_benchmark(
        "mine", ["my_metric"]
    )


def test_curves_are_in_the_unit_of_papers():
    figure = benchmark_curves(
        [*STAR, *COCO, row("coco", 4, "cider", 0.9, selection="rices")], {"star": 0.25}
    )
    coco, star = figure.axes
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["COCO", "STAR"]
    lines = {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in coco.get_lines()
    }
    assert lines["this run"] == ([0, 1], pytest.approx([71.2, 83.95]))
    assert lines["this run, RICES"] == ([1], pytest.approx([90.0]))
    assert lines["Flamingo-80B"] == ([0, 1], [84.3, 103.2])
    published = {"Flamingo-3B", "Flamingo-9B", "Flamingo-80B", "OpenFlamingo-9B", "IDEFICS-80B"}
    assert set(lines) == {"this run", "this run, RICES", *published}
    assert {"71.2", "84.0", "90.0", "CIDEr-D x 100"} <= set(texts(coco))
    guessing = {line.get_label(): line.get_ydata()[0] for line in star.get_lines()}["guessing"]
    assert guessing == 25.0
    assert [tick.get_text() for tick in star.get_xticklabels()] == ["0", "16"]


def test_curves_of_one_point_and_of_a_task_nobody_published():
    (axis,) = benchmark_curves([row("my_captions", 4, "cider", 0.5)], {}).axes
    (line,) = axis.get_lines()
    assert (list(line.get_xdata()), list(line.get_ydata())) == ([0], [50.0])
