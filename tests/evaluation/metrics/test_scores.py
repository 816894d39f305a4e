"""Metrics of candidates' scores: by hand, and what is refused."""

import numpy as np
import pytest

from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.evaluation.metrics import METRICS, metric
from flamingo_jax.evaluation.metrics.rareact_mwap import average_precision
from flamingo_jax.evaluation.metrics.roc_auc import area, probability
from flamingo_jax.evaluation.metrics.top1_top5 import rank
from flamingo_jax.evaluation.metrics.visdial_ndcg import ndcg
from tests.evaluation.answers import answered

CLASSES = tuple("abcdefg")


def scored(answer, scores, **extra):
    return answered(
        "q7", answer, candidates=CLASSES[: len(scores)], scores=tuple(scores), extra=extra
    )


def test_top1_top5():
    scores = (-7.0, -6.0, -5.0, -4.0, -3.0, -2.0, -1.0)
    assert [rank(scores, index) for index in range(7)] == [6, 5, 4, 3, 2, 1, 0]
    assert [rank((1.0, 1.0, 1.0), index) for index in range(3)] == [0, 1, 2]
    values = {"a": 0.0, "b": 0.0, "c": 0.5, "f": 0.5, "g": 1.0}
    for answer, value in values.items():
        assert metric("top1_top5").value([scored(answer, scores)]) == value
    assert metric("top1_top5").value(
        [scored(answer, scores) for answer in values]
    ) == pytest.approx(0.4)
    with pytest.raises(ValueError, match="'z' is not among its 7 candidates"):
        metric("top1_top5").value([scored("z", scores)])


def test_ndcg_by_hand():
    assert ndcg([3.0, 2.0, 1.0], [0.0, 1.0, 0.0]) == 0  # one relevant option, and it is not first
    assert ndcg([3.0, 2.0, 1.0], [0.0, 1.0, 0.5]) == pytest.approx(
        (1 / np.log2(3)) / (1 + 0.5 / np.log2(3))
    )
    assert ndcg([3.0, 2.0, 1.0], [0.2, 0.1, 0.0]) == 1


@pytest.mark.parametrize("relevance", [[1.0], [0.0, 0.0], [1.0, 0.0, 0.0]])
def test_ndcg_refuses_other_annotations(relevance):
    with pytest.raises(
        ValueError,
        match="visdial_ndcg of query 'q7': expected a relevance for each of its 2 candidates",
    ):
        metric("visdial_ndcg").value([scored("a", (0.0, 1.0), relevance=relevance)])


def test_area_counts_pairs():
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 40).astype(float), rng.integers(0, 2, 40).astype(bool)
    difference = scores[positive][:, None] - scores[~positive][None]
    assert area(scores, positive) == pytest.approx((np.sign(difference).mean() + 1) / 2)
    assert probability((-1000.0, -1000.0), 0) == 0.5


def test_roc_auc_refuses_one_class_and_a_foreign_answer():
    with pytest.raises(ValueError, match="all 1 queries have the same label"):
        metric("roc_auc").value([scored("a", (0.0, 1.0), positive="a")])
    with pytest.raises(ValueError, match="positive answer 'z' is not among its candidates"):
        metric("roc_auc").value([scored("a", (0.0, 1.0), positive="z")])
    with pytest.raises(ValueError, match=r"reads extra\['positive'\]"):
        metric("roc_auc").value([scored("a", (0.0, 1.0))])


def test_average_precision_by_hand():
    scores, positive = np.array([3.0, 2.0, 1.0]), np.array([True, False, True])
    assert average_precision(scores, positive, np.ones(3)) == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)
    assert average_precision(scores, positive, np.array([1, 3, 1])) == pytest.approx(
        0.5 * 1 + 0.5 * 2 / 5
    )
    assert average_precision(np.zeros(3), positive, np.ones(3)) == pytest.approx(2 / 3)


def test_mwap_weighs_videos_and_refuses_what_it_cannot_judge():
    def clip(scores, class_id, annotation, video, noun=None):
        noun = noun or f"noun {class_id}"
        return scored(
            "a",
            scores,
            verb=f"verb {class_id}",
            noun=noun,
            annotation=annotation,
            video=video,
            **{"class": class_id},
        )

    shown, absent = clip((3.0, 0.0), 0, 1, "x"), clip((4.0, 0.0), 0, 0, "y")
    assert metric("rareact_mwap").value([shown, absent]) == 0.5
    assert metric("rareact_mwap").value([shown, absent, absent]) == 0.5  # two clips of one video
    assert metric("rareact_mwap").value(
        [shown, absent, clip((4.0, 0.0), 0, 0, "z")]
    ) == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match="no clip is annotated with 1"):
        metric("rareact_mwap").value([absent])
    with pytest.raises(ValueError, match=r"got \[2\] candidates and classes 0..2"):
        metric("rareact_mwap").value([shown, clip((0.0, 1.0), 2, 0, "x")])
    with pytest.raises(ValueError, match=r"got \[2, 3\] candidates"):
        metric("rareact_mwap").value([shown, clip((0.0, 1.0, 2.0), 0, 0, "x")])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("name", [name for name, each in METRICS.items() if each.needs == "scores"])
def test_scores_that_are_not_finite_are_refused(name, bad):
    """One bad score among good ones, of the right answer or of another, has no value."""
    for scores in ((0.0, bad), (bad, 0.0), (bad, bad)):
        with pytest.raises(NonFiniteError, match=f"query 'q7', of which {name} is asked,"):
            metric(name).value([scored("a", scores)])


@pytest.mark.parametrize("name", ["ranking", "nll", "top1_top5"])
def test_fewer_scores_than_candidates_are_refused(name):
    one = answered("q7", "a", candidates=("a", "b"), scores=(0.0,))
    with pytest.raises(ValueError, match=f"{name} of query 'q7': .*2 candidates, got 1"):
        metric(name).value([one])


def test_relevance_that_is_not_finite_is_refused():
    with pytest.raises(NonFiniteError, match=r"Ratings of the annotators .* Check their file"):
        ndcg((0.0, 1.0), (0.5, float("nan")))
