"""Each metric against its official script, whose outputs are in tests/golden/metrics."""

import json
import pathlib

import numpy as np
import pytest

from flamingo_jax.evaluation.metrics import METRICS, metric, wups
from flamingo_jax.evaluation.metrics.cider import scores as cider_scores
from flamingo_jax.evaluation.metrics.okvqa_accuracy import annotated_stems, stem
from flamingo_jax.evaluation.metrics.required import MissingResourceError, trim
from flamingo_jax.evaluation.metrics.vqa_accuracy import accuracy
from tests.evaluation.answers import answered

GOLDEN = pathlib.Path(__file__).parents[2] / "golden" / "metrics"
# The scripts print 10 digits or compute in float64. One torch script computes in float32 and has
# its own tolerance below.
EXACT = {"rtol": 0, "atol": 1e-9}


def golden(name):
    record = json.loads((GOLDEN / f"{name}.json").read_text())
    return record["predictions"], record["values"]


def value(name, predictions):
    return metric(name).value(predictions)


@pytest.fixture
def needs_wordnet():
    try:
        METRICS["okvqa_accuracy"].check()
    except MissingResourceError as error:
        pytest.skip(str(error))


@pytest.fixture
def needs_java():
    try:
        METRICS["cider"].check()
    except MissingResourceError as error:
        pytest.skip(str(error))


def test_vqa_accuracy():
    cases, values = golden("vqa_accuracy")
    each = [accuracy(trim(text), annotated) for text, annotated in cases]
    np.testing.assert_allclose(each, values["each"], **EXACT)
    predictions = [
        answered(str(i), "", text, references=tuple(r)) for i, (text, r) in enumerate(cases)
    ]
    np.testing.assert_allclose(value("vqa_accuracy", predictions), values["mean"], **EXACT)


def test_okvqa_accuracy_of_stemmed_answers(needs_wordnet):
    cases, values = golden("okvqa_accuracy")
    texts = [stem(text, annotated_stems(raw, stems)) for text, raw, stems in cases]
    # The other stemmer splits off punctuation, which the metric drops later.
    assert [text.replace(".", " .") for text in texts] == values["stems"]
    predictions = [
        answered(str(i), "", text, references=tuple(stems), extra={"raw_answers": raw})
        for i, (text, raw, stems) in enumerate(cases)
    ]
    np.testing.assert_allclose(value("okvqa_accuracy", predictions), values["mean"], **EXACT)


def test_cider_of_tokens():
    _, values = golden("cider")
    candidates = [text.split() for text in values["candidates"]]
    references = [[text.split() for text in texts] for texts in values["references"]]
    np.testing.assert_allclose(cider_scores(candidates, references), values["each"], **EXACT)


def test_cider_of_captions(needs_java):
    cases, values = golden("cider")
    predictions = [
        answered(str(i), "", text, references=tuple(r)) for i, (text, r) in enumerate(cases)
    ]
    np.testing.assert_allclose(value("cider", predictions), values["mean"], **EXACT)


def test_ivqa_accuracy():
    cases, values = golden("ivqa_accuracy")
    predictions = [
        answered(str(i), "", text, references=tuple(r)) for i, (text, r) in enumerate(cases)
    ]
    np.testing.assert_allclose(value("ivqa_accuracy", predictions), values["mean"], **EXACT)


def test_top1():
    cases, values = golden("top1")
    predictions = [answered(str(i), answer, text) for i, (text, answer) in enumerate(cases)]
    assert value("top1", predictions) == values["mean"]


def test_visdial_ndcg():
    cases, values = golden("visdial_ndcg")
    options = tuple(f"option {i % 98}" for i in range(100))  # options may recur
    predictions = [
        answered(
            str(i),
            options[3],
            candidates=options,
            scores=tuple(scores),
            extra={"relevance": relevance},
        )
        for i, (scores, relevance) in enumerate(cases)
    ]
    # float32 in the official code: 6 numbers of up to 100 terms each
    np.testing.assert_allclose(value("visdial_ndcg", predictions), values["mean"], rtol=2e-6)


def test_roc_auc():
    cases, values = golden("roc_auc")
    predictions = [
        answered(
            str(i),
            ("no", "yes")[hateful],
            candidates=("yes", "no"),
            scores=tuple(s),
            extra={"positive": "yes"},
        )
        for i, (s, hateful) in enumerate(cases)
    ]
    assert len({s[0] - s[1] for s, _ in cases}) < len(cases)  # there are ties
    np.testing.assert_allclose(value("roc_auc", predictions), values["mean"], **EXACT)


def test_rareact_mwap():
    cases, values = golden("rareact_mwap")
    names = tuple(f"action {i}" for i in range(len(cases["scores"][0])))
    predictions = []
    for (index, video, _, _, class_id, verb, noun, annotation), scores in zip(
        cases["rows"], cases["scores"], strict=True
    ):
        extra = {
            "video": video,
            "class": class_id,
            "verb": verb,
            "noun": noun,
            "annotation": annotation,
        }
        predictions.append(
            answered(
                str(index), names[class_id], candidates=names, scores=tuple(scores), extra=extra
            )
        )
    np.testing.assert_allclose(value("rareact_mwap", predictions), values["mean"], **EXACT)
    np.testing.assert_allclose(value("rareact_mwap", predictions[::-1]), values["mean"], **EXACT)


def test_wups(needs_wordnet, monkeypatch):
    """The tags are those that NLTK's tagger gave the official script.

    Its weights are a download that tests do not have.
    """
    pytest.importorskip("nltk", reason="the package nltk is not installed")
    cases, values = golden("wups")
    tags = values["tags"]
    monkeypatch.setattr(
        wups, "tagger", lambda: lambda words: list(zip(words, tags[" ".join(words)], strict=True))
    )
    for (text, answer, _, more), contents in zip(cases, values["contents"], strict=True):
        assert [wups.content(one) for one in (text, answer, more) if one is not None] == contents
    predictions = [
        answered(str(i), answer, text, extra={"question_type": kind, "additional": more})
        for i, (text, answer, kind, more) in enumerate(cases)
    ]
    each = [value("wups", [prediction]) for prediction in predictions]
    np.testing.assert_allclose(each, values["each"], **EXACT)
    assert f"{100 * value('wups', predictions):.2f}" == f"{values['printed']:.2f}"


def test_every_official_metric_has_golden_values():
    ours = {"exact_match", "ranking", "nll", "top1_top5"}  # arithmetic that no script defines
    # Counts and shares, worked out by hand in the tests of their benchmarks (test_gqa, test_pope,
    # test_multiple_choice).
    by_hand = {"circular_accuracy", "gqa_accuracy", "gqa_distribution"}
    by_hand |= {f"pope_{name}" for name in ("f1", "accuracy", "precision", "recall", "yes")}
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(METRICS) - ours - by_hand
    for path in GOLDEN.glob("*.json"):
        record = json.loads(path.read_text())
        assert {"repository", "commit", "command", "packages"} <= record.keys()
