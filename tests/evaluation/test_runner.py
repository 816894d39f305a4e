"""The runner on a task in memory and the tiny model.

It tests the rows, the shared prefill, and that results do not depend on batch size or devices.
"""

import dataclasses
import json

import jax
import numpy as np
import pytest

from flamingo_jax.data.schema import Batch
from flamingo_jax.evaluation import predictions
from flamingo_jax.evaluation.episode import Episode, Row
from flamingo_jax.evaluation.lm_lookup import lookup_probe
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.registry import create
from flamingo_jax.evaluation.runner import evaluate, evaluate_all
from flamingo_jax.inference.compiled import Compiled
from flamingo_jax.inference.methods import Greedy
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.inference import tiny

# Of a line of results.json.
FIELDS = [each.name for each in dataclasses.fields(Row)]


@dataclasses.dataclass(frozen=True)
class Naming:
    """Names of random images: there is nothing to learn, and everything can be counted."""

    name: str = "naming"
    metrics: tuple[str, ...] = ("exact_match", "ranking")
    chance: float | None = 0.5
    masked: bool = False
    protocol: Protocol = Protocol(n=11, seed=5)

    def accepts(self, shots):
        return True

    def submission_questions(self):
        return ()

    def episodes(self, shots):
        names = ("dax", "wug")
        for index in range(self.protocol.n):
            rng = np.random.default_rng((self.protocol.seed, index))
            answer = names[rng.integers(2)]
            images = [tiny.image(int(i)) for i in rng.permutation(4)[: shots + 1]]
            parts = [
                part
                for image in images[:-1]
                for part in (image, f"this is a {names[rng.integers(2)]}<EOC>")
            ]
            yield Episode(
                (*parts, images[-1], "this is a"),
                names,
                answer,
                f"query/{index}",
                masked=self.masked,
            )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def result(model):
    return evaluate(model, Naming(), shots=2, batch_size=4)


def test_rows_are_those_of_results_json(result):
    rows = [dataclasses.asdict(row) for row in result[0]]
    assert all(list(row) == FIELDS for row in rows)
    assert [(row["metric"], row["decoding"]) for row in rows] == [
        ("exact_match", "greedy"),
        ("ranking", "log_likelihood"),
    ]
    first = {
        name: value
        for name, value in rows[0].items()
        if name not in ("value", "metric", "decoding")
    }
    assert first == {
        "task": "naming",
        "split": "test",
        "shots": 2,
        "n": 11,
        "seed": 5,
        "selection": "random",
        "ensemble": 1,
        "checkpoint": "tiny",
        "step": 7,
        "num_support": None,
        "num_support_per_class": None,
        "num_text_examples": None,
        "groups": None,
    }


def test_values_are_those_of_the_predictions(result):
    rows, answers = result
    assert 0 < rows[1].value < 1
    best = [each.episode.candidates[int(np.argmax(each.scores))] for each in answers]
    right = [each.episode.answer for each in answers]
    assert rows[1].value == np.mean([a == b for a, b in zip(best, right, strict=True)])
    assert len({each.text for each in answers}) > 1


@pytest.mark.parametrize("mesh", [None, {"data": 8}], ids=["one batch of 16", "eight devices"])
def test_results_do_not_depend_on_batch_size_or_devices(result, model, mesh, tmp_path_factory):
    """Texts and values are equal, scores to 1e-4.

    Sums of float32 have another order in other shapes.
    """
    if mesh is not None:
        model = tiny.load(tmp_path_factory.getbasetemp(), mesh=make_mesh(MeshConfig(**mesh)))
    rows, answers = evaluate(model, Naming(), shots=2, batch_size=16)
    assert rows == result[0]
    for one, two in zip(result[1], answers, strict=True):
        assert {**one.line(), "scores": None} == {**two.line(), "scores": None}
        np.testing.assert_allclose(one.scores, two.scores, atol=1e-4)


def test_one_prefill_serves_both_metrics(model, monkeypatch):
    calls = []
    run = Compiled.on_devices

    def counting(self, function, *inputs, **static):
        calls.append(static["method"])
        return run(self, function, *inputs, **static)

    monkeypatch.setattr(Compiled, "on_devices", counting)
    evaluate(model, Naming(), shots=2, batch_size=4)
    # Three batches of at most 4, and no other call.
    assert calls == [Greedy(tiny.CONFIG.max_new_tokens)] * 3


def test_images_of_masked_episodes_change_nothing(model):
    """Prompts with the same text and other images have exactly the same scores."""
    four = Protocol(n=4, seed=5)
    _, masked = evaluate(model, Naming(masked=True, protocol=four), shots=0, batch_size=4)
    assert len({each.scores for each in masked}) == 1
    _, plain = evaluate(model, Naming(protocol=four), shots=0, batch_size=4)
    assert len({each.scores for each in plain}) > 1


def test_predictions_and_samples_can_be_inspected(result, tmp_path):
    _, answers = result
    predictions.write(tmp_path / "predictions.jsonl", answers)
    lines = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert len(lines) == 11
    assert (
        lines[0]["prompt"].startswith("<image>this is a ")
        and lines[0]["prompt"].count("<image>") == 3
    )
    assert lines[0]["scores"] == list(answers[0].scores)
    again = [dataclasses.replace(each, shots=4) for each in answers]
    samples = predictions.first_of_each([*answers, *again], 3)
    assert samples == [*answers[:3], *again[:3]]
    assert samples[0].episode.prompt == lines[0]["prompt"]


def test_look_up_as_a_task_equals_the_probe(tmp_path_factory):
    """Cached scoring of pages gives the losses of the model without a cache, to 1e-4."""
    lm = tiny.load(
        tmp_path_factory.getbasetemp(),
        kind="language_model",
        config=dataclasses.replace(tiny.CONFIG, lengths=(64,)),
    )
    task = create("lm_lookup", {}, Protocol(shots=(0, 1, 3), n=8, seed=2))
    rows, answers = evaluate_all(lm, [task], batch_size=8)
    # A dictionary with fewer than two entries is not a question.
    assert {each.shots for each in (*rows, *answers)} == {3}
    fns, params = tiny.parts(lm.tokenizer.vocab_size, "language_model")
    losses = jax.jit(
        lambda tokens, segment: fns.token_losses(params, Batch.of_text(tokens, segment))
    )
    probe = lookup_probe(losses, lm.tokenizer, 3, n=8, seed=2)
    found = {row.metric: row.value for row in rows}
    assert found["ranking"] == probe["accuracy"]
    assert found["nll"] == pytest.approx(probe["nll"], abs=1e-4)


def test_a_task_without_episodes_or_without_shots_is_an_error(model):
    with pytest.raises(ValueError, match="task 'naming' at 2 shots gave no episodes"):
        evaluate(model, Naming(protocol=Protocol(n=0)), shots=2)
    with pytest.raises(ValueError, match=r"'lm_lookup' is not defined at \[0, 1\] shots"):
        evaluate_all(model, [create("lm_lookup", {}, Protocol(shots=(0, 1), n=1))])
