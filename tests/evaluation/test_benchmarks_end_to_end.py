"""Each benchmark from its official files to a row of results.json.

A tiny model answers at 0 and at 2 shots.
"""

import dataclasses
import json

import pytest

from flamingo_jax.evaluation import registry, task
from flamingo_jax.evaluation.metrics import MissingResourceError, metric, submission, wups
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import evaluate
from tests.evaluation.fixtures import benchmarks
from tests.inference import tiny

# Benchmarks with hidden answers: a submission with these keys, and no row.
HIDDEN = {
    "vqav2": ("question_id", {1000, 1001, 16002}),
    "vizwiz": ("image", {f"VizWiz_test_{number:08d}.jpg" for number in range(3)}),
    "nocaps_test": ("image_id", {0, 1, 2}),
}
SHOTS = (0, 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """All prompts have one shape, so that few programs are compiled.

    The longest prompt is a dialogue of ten questions at 2 shots, in words of the tokenizer.
    """
    config = dataclasses.replace(tiny.CONFIG, lengths=(96,), xattn_chunk=0, max_new_tokens=3)
    return tiny.load(tmp_path_factory.getbasetemp(), config=config)


@pytest.fixture(autouse=True)
def tagger(monkeypatch):
    """Makes every word a noun: the data of WUPS's tagger is a download."""
    monkeypatch.setattr(wups, "tagger", lambda: lambda words: [(word, "NN") for word in words])
    monkeypatch.setattr(wups, "sentences", lambda text: [text])


def make(name, directory) -> task.Task:
    data = benchmarks.make(name, directory)
    return registry.create(
        name, data, Protocol(n=0, seed=3, num_support=4, num_support_per_class=2)
    )


@pytest.mark.parametrize("shots", SHOTS)
@pytest.mark.parametrize("name", benchmarks.IMAGES + benchmarks.VIDEOS)
def test_benchmark_runs(model, tmp_path, name, shots):
    benchmark = make(name, tmp_path)
    try:
        metric(benchmark.metrics[0]).check()
    except MissingResourceError as error:
        pytest.skip(str(error))
    if not benchmark.accepts(shots):
        assert benchmark.benchmark.max_shots == 0 < shots
        return
    rows, answers = evaluate(model, benchmark, shots=shots, batch_size=4)
    assert len({answer.episode.query_id for answer in answers}) == len(answers) >= 3
    if name in HIDDEN:
        key, ids = HIDDEN[name]
        assert rows == []
        assert {entry[key] for entry in submission.entries(answers)} == ids
        return
    assert [row.metric for row in rows] == list(benchmark.metrics)
    row = rows[0]
    assert (row.task, row.shots, row.metric, row.n) == (
        name,
        shots,
        benchmark.metrics[0],
        len(answers),
    )
    assert 0 <= row.value <= (10 if row.metric == "cider" else 1)
    is_open_ended = metric(row.metric).needs == "generation"
    for answer in answers:
        assert isinstance(answer.text, str) == is_open_ended
        assert (answer.scores is not None) == (not is_open_ended)
        assert len(answer.scores or ()) == len(answer.episode.candidates) * (not is_open_ended)


@pytest.mark.parametrize("name", benchmarks.IMAGES + benchmarks.VIDEOS)
def test_prompts_follow_the_template(tmp_path, name):
    """Each example comes after its image (Figure 8).

    At 0 shots there are two examples of text alone, or no example if the benchmark is close-ended.
    """
    benchmark = make(name, tmp_path)
    for shots in filter(benchmark.accepts, SHOTS):
        for episode in benchmark.episodes(shots):
            text = episode.prompt
            is_alone = bool(episode.candidates) or benchmark.benchmark.max_shots == 0
            num_examples = shots or (0 if is_alone else 2)
            # Of ScienceQA, some questions have no picture.
            shown = sum(not isinstance(part, str) for part in episode.parts)
            assert text.count("<image>") == shown
            assert shown == shots + 1 or name == "scienceqa"
            assert text.count("<EOC>") == num_examples
            *examples, query = text.split("<EOC>")
            assert query.endswith(("Output:", "Answer:", "Caption: a person"))
            if name != "scienceqa":
                assert query.startswith("<image>")
                for example in examples:
                    assert example.startswith("<image>") == (shots > 0)
            json.dumps(dict(episode.extra))  # goes into the journal
