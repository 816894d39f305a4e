"""Metrics of decoded text: what goes in, what is refused, and what a missing package says."""

import json

import pytest

from flamingo_jax.evaluation.metrics import (
    METRICS,
    HiddenAnswersError,
    MissingResourceError,
    metric,
    ptb,
    wups,
)
from flamingo_jax.evaluation.metrics.cider import scores
from flamingo_jax.evaluation.metrics.okvqa_accuracy import annotated_stems, stem_word
from flamingo_jax.evaluation.metrics.submission import entries, write
from flamingo_jax.evaluation.metrics.vqa_accuracy import normalise
from tests.evaluation.answers import answered


def decoded(text, *references, **extra):
    return answered(
        "q7", references[0] if references else "", text, references=references, extra=extra
    )


# POPE's metrics read yes or no, and GQA's distribution compares the answers of a whole group:
# tests/evaluation/benchmarks/test_pope.py and test_gqa.py.
OF_GROUPS = {"gqa_distribution", *(name for name in METRICS if name.startswith("pope_"))}


@pytest.mark.parametrize(
    "name",
    [n for n, each in METRICS.items() if each.needs == "generation" and n not in OF_GROUPS],
)
def test_text_is_trimmed_at_the_next_prompt_keyword(name, monkeypatch):
    monkeypatch.setattr(
        ptb, "tokenize", lambda captions: [tuple(caption.split()) for caption in captions]
    )
    monkeypatch.setattr(wups, "content", lambda answer: " ".join(answer.split()))
    other = decoded("x y z w", "e f g h", question_type="DB")

    def value(text):
        return metric(name).value([decoded(text, *["a b c d"] * 5, question_type="DB"), other])

    assert (
        value("a b c d<EOC> Output: e f")
        == value("a b c d Question: what")
        == value("a b c d")
        > value("a b c e")
    )


@pytest.mark.parametrize("name", ["vqa_accuracy", "okvqa_accuracy"])
def test_hidden_answers_have_their_own_error(name):
    with pytest.raises(HiddenAnswersError, match="not public.*submission.write"):
        metric(name).value([decoded("yes"), decoded("no")])
    with pytest.raises(ValueError, match="query 'q7': it has no references"):
        metric(name).value([decoded("yes", "yes"), decoded("no")])


def test_submission_of_vqav2_and_vizwiz(tmp_path):
    predictions = [decoded(" red<EOC>x", question_id=5), decoded("a dog Question: ", question_id=3)]
    write(tmp_path / "new" / "vqav2.json", predictions, [3, 4, 5])
    assert json.loads((tmp_path / "new" / "vqav2.json").read_text()) == [
        {"question_id": 5, "answer": "red"},
        {"question_id": 3, "answer": "a dog"},
        {"question_id": 4, "answer": ""},
    ]
    assert entries([decoded("red", image="VizWiz_test_1.jpg")]) == [
        {"image": "VizWiz_test_1.jpg", "answer": "red"}
    ]
    with pytest.raises(ValueError, match="question_id 5 is answered twice"):
        entries([predictions[0]] * 2)
    with pytest.raises(
        ValueError, match=r"reads extra\['question_id'\], which is not there \(there are: split\)"
    ):
        entries([decoded("red", split="x")])
    with pytest.raises(ValueError, match="submission of query 'q7': nothing was decoded"):
        entries([decoded(None, question_id=1)])
    with pytest.raises(ValueError, match="no predictions"):
        entries([])


def test_vqa_normalisation_is_idempotent_on_what_it_gives():
    for text in ("The 1,000-ish dogs", "couldntve seen a p.m.", "Two/three"):
        assert normalise(normalise(text)) == normalise(text)


def test_okvqa_stems():
    known = annotated_stems(["riding horses", "one two"], ["ride horse", "onetwo"])
    # not from answers with another number of stemmed words
    assert known == {"riding": "ride", "horses": "horse"}
    assert stem_word("riding", known) == "ride"
    with pytest.raises(ValueError, match="a raw answer for each of 1 references, got 2"):
        metric("okvqa_accuracy").value([decoded("x", "y", raw_answers=["a", "b"])])


def test_cider_depends_on_the_evaluated_set():
    red, blue = ["a", "red", "cat", "sits"], ["a", "blue", "dog", "runs"]
    assert scores([red], [[red]]) == [0.0]  # of one image, every n-gram is in all images
    both = scores([red, blue], [[red], [blue]])
    assert both == pytest.approx([10.0, 10.0])
    assert scores([red, red], [[red], [blue]])[1] == 0.0  # all they share is in every image


def test_missing_programs_and_packages_are_named(monkeypatch):
    ptb._command.cache_clear()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(MissingResourceError, match="apt-get install default-jre-headless"):
            metric("cider").check()
    with monkeypatch.context() as patch:
        patch.setattr(ptb.subprocess, "run", lambda *arguments, **settings: None)  # java is there
        patch.setattr(ptb.importlib.util, "find_spec", lambda name: None)
        with pytest.raises(MissingResourceError, match="pip install pycocoevalcap"):
            metric("cider").value([decoded("a cat", "a cat")])
    ptb._command.cache_clear()

    def no_data():
        raise LookupError("Resource averaged_perceptron_tagger_eng not found.")

    wups.tagger.cache_clear()
    with monkeypatch.context() as patch:
        perceptron = pytest.importorskip(
            "nltk.tag.perceptron", reason="the package nltk is not installed"
        )
        patch.setattr(perceptron, "PerceptronTagger", no_data)
        with pytest.raises(
            MissingResourceError, match="nltk.downloader averaged_perceptron_tagger_eng punkt_tab"
        ):
            metric("wups").check()
    wups.tagger.cache_clear()


def test_a_tokenizer_that_fails_is_quoted(monkeypatch):
    monkeypatch.setattr(ptb, "_command", lambda: ("sh", "-c", "echo no heap >&2; exit 3"))
    with pytest.raises(
        RuntimeError, match=r"status 3 and 0 lines for 1 captions; its last words: 'no heap'"
    ):
        ptb.tokenize(["a cat"])


def test_one_run_tokenizes_every_caption_on_its_line():
    try:
        ptb.check()
    except MissingResourceError as error:
        pytest.skip(str(error))
    captions = ["A cat\r\nsits", "", "x\u2028y\x85z\x0bw", " ", "It's (not) 5,000!", "\ud800"]
    assert ptb.tokenize(captions) == [
        ("a", "cat", "sits"),
        (),
        ("x", "y", "z", "w"),
        (),
        ("it", "'s", "-lrb-", "not", "-rrb-", "5,000"),
        (),
    ]
    assert ptb.tokenize([]) == []
