"""The table of zero-shot results with published ones, to the letter; the published numbers."""

import pytest

from flamingo_jax.evaluation.benchmarks.contrastive_task import RECALLS
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.registry import create
from flamingo_jax.evaluation.report import comparison_table, report_writer
from flamingo_jax.evaluation.report.published import contrastive


def row(task, metric, value, **fields):
    about = {
        "split": "test",
        "shots": 0,
        "n": 1000,
        "seed": 1,
        "selection": "random",
        "ensemble": 1,
    }
    about |= {"decoding": "cosine", "checkpoint": "runs/x", "step": 700, **fields}
    return Row(task=task, metric=metric, value=value, **about)


FLICKR = [row("flickr30k_retrieval", metric, 0.5 + 0.05 * at) for at, metric in enumerate(RECALLS)]
KINETICS = [row("kinetics700_zero_shot", name, 0.25, ensemble=8) for name in ("top1_top5", "top1")]


def test_text():
    assert report_writer.text_table([*FLICKR, *KINETICS]) == (
        "This run: runs/x at step 700, seed 1; cosines of embeddings, values in percent.\n"
        "\n"
        "Flickr30k retrieval: 1000 images of Karpathy test; paper: the 1,000 of Karpathy's test "
        "split\n"
        "                             i2t R@1     i2t R@5    i2t R@10     t2i R@1     t2i R@5    "
        "t2i R@10\n"
        "  this run                      50.0        55.0        60.0        65.0        70.0      "
        "  75.0\n"
        "  contrastive NFNet-F6          89.3        98.8        99.7        79.5        95.3      "
        "  97.9\n"
        "\n"
        "Kinetics700, zero-shot: 1000 clips of val, 8 templates per class; paper: the validation "
        "split, of what was public in April 2022\n"
        "                          their mean       top-1\n"
        "  this run                      25.0        25.0\n"
        "  contrastive NFNet-F6          62.9           -\n"
        "\n"
        "i2t, t2i: image to text and text to image; R@k: a right one is among the first k.\n"
        "Published: Flamingo, arXiv 2204.14198 v2, Table 9 and, NFNet-F0 with BERT-mini on parts "
        "of the data, Table 11; zero-shot classification: Table 7.\n"
        "Fewer images than the paper's make retrieval easier: such numbers are not comparable.\n"
    )


def test_markdown_and_what_nobody_published():
    written = report_writer.markdown_table([row("world_zero_shot", "top1", 1.0, ensemble=2)])
    assert "Objects of the demo's world, zero-shot: 1000 images, 2 templates per class\n" in written
    assert "| | top-1 |\n| --- | ---: |\n| this run | 100.0 |\n" in written
    assert "Published" not in written and "R@k" not in written


def test_beside_prompted_tasks():
    """Each in its own table."""
    prompted = row("format", "exact_match", 0.5, decoding="greedy", shots=4)
    both = report_writer.text_table([prompted, *FLICKR])
    assert report_writer.text_table([prompted]) in both and comparison_table.text(FLICKR) in both


def test_published_numbers():
    """Control sums of Table 11's rows and of Table 9's; its ImageNet column.

    Table 7's first row.
    """
    coco = contrastive("coco_retrieval")
    sums = {model: round(sum(values.values()), 1) for model, values in coco.items()}
    assert sums == {
        "contrastive NFNet-F6": 449.5,
        "NFNet-F0, LTIP": 338.3,
        "NFNet-F0, ALIGN": 292.5,
        "NFNet-F0, accumulation": 347.8,
        "NFNet-F0, data merged": 290.9,
        "NFNet-F0, round-robin": 335.3,
    }
    assert sum(
        contrastive("flickr30k_retrieval")["contrastive NFNet-F6"].values()
    ) == pytest.approx(560.5)
    imagenet = {
        model: values["top1"] for model, values in contrastive("imagenet_zero_shot").items()
    }
    assert imagenet.pop("contrastive NFNet-F6") == 77.9
    assert max(imagenet, key=imagenet.get) == "NFNet-F0, accumulation"  # what the paper chose
    assert (
        max(coco, key=lambda model: coco[model]["text_to_image_recall_at_1"])
        == "contrastive NFNet-F6"
    )


@pytest.mark.parametrize(
    "name", ["coco_retrieval", "flickr30k_retrieval", "imagenet_zero_shot", "kinetics700_zero_shot"]
)
def test_published_metrics_are_measured(name):
    data = dict.fromkeys(("coco", "flickr30k", "imagenet", "kinetics700"), "somewhere")
    measured = create(name, data).metrics
    assert all(set(values) <= set(measured) for values in contrastive(name).values())
    assert all(measured[0] in values for values in contrastive(name).values())
