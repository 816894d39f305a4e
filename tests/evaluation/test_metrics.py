"""Metrics on hand-written predictions."""

import pytest

from flamingo_jax.evaluation.metrics import METRICS, metric
from flamingo_jax.evaluation.metrics.exact_match import exact_match
from flamingo_jax.evaluation.metrics.ranking import answer_nll, ranking
from flamingo_jax.evaluation.metrics.required import trim
from tests.evaluation.answers import answered


def decoded(text, answer="red circle"):
    return answered("q", answer, text)


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("red circle", True),
        (" Red  circle.", True),
        ("red circle<EOC> and more", True),
        ("red circle<image>output : blue", True),
        ("red circle Output: blue", True),  # no <EOC>: it went on with the next example
        ("red circle question : what", True),
        ("red circles", False),
        ("red", False),
        ("", False),
        ("output : red circle", False),
    ],
)
def test_exact_match_trims_at_tags_and_prompt_keywords(text, right):
    assert exact_match([decoded(text)]) == right


def test_a_keyword_without_its_colon_is_a_word():
    assert trim("the output is an answer") == "the output is an answer"


def test_exact_match_is_a_fraction():
    assert (
        exact_match(
            [decoded("red circle"), decoded("blue"), decoded("red"), decoded("red circle.")]
        )
        == 0.5
    )


def test_ranking_and_nll():
    first = answered("a", "dax", candidates=("wug", "dax"), scores=(-2.0, -1.0))
    second = answered("b", "dax", candidates=("dax", "wug"), scores=(-4.0, -3.0))
    assert first.ranked_first == "dax" and second.ranked_first == "wug"
    assert ranking([first, second]) == 0.5
    assert answer_nll([first, second]) == 2.5


def test_every_metric_refuses_what_it_cannot_judge():
    for name, each in METRICS.items():
        with pytest.raises(ValueError):
            each.value([])
        with pytest.raises(ValueError, match="decoded|scored|candidates"):
            each.value([answered("q", "dax")])
        assert metric(name) is each
    with pytest.raises(
        ValueError, match="unknown metric 'bleu': expected one of cider, circular_accuracy"
    ):
        metric("bleu")
