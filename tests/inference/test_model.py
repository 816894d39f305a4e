"""Flamingo.generate and .score on a tiny model: batches, buckets, devices, beams."""

import dataclasses

import numpy as np
import pytest

from flamingo_jax.core.fingerprint import fingerprint
from flamingo_jax.inference.compiled import Compiled
from flamingo_jax.inference.methods import BeamSearch, Sample
from flamingo_jax.inference.model import PromptError
from flamingo_jax.inference.padding import xattn_chunk
from flamingo_jax.inference.request import Request
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.inference import tiny

PROMPTS = [
    [tiny.image(0), "output : red<EOC>", tiny.image(1), "output :"],
    [tiny.image(2), "this is a"],
    [tiny.image(3), "output :"],
    "question : red circle answer :",
    [
        tiny.image(1),
        "this is a dax<EOC>",
        tiny.image(2),
        "this is a wug<EOC>",
        tiny.image(0),
        "this is a dax<EOC>",
        tiny.image(3),
        "this is a",
    ],
]
BEAMS = BeamSearch(3, max_new_tokens=tiny.CONFIG.max_new_tokens)
CANDIDATES = ["red", "blue circle", "a big green square"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp())


def answers(model, prompts=PROMPTS, **settings):
    """Texts and scores of prompts, from one compiled program per shape."""
    requests = [model.request(prompt, CANDIDATES) for prompt in prompts]
    found = model.engine.answer(requests, **settings)
    return [model.text(answer) for answer in found], [answer.scores for answer in found]


@pytest.fixture(scope="module")
def alone(model):
    """What the model says to each prompt by itself."""
    return [model.generate(prompt) for prompt in PROMPTS], [
        model.score(prompt, CANDIDATES) for prompt in PROMPTS
    ]


def test_answers_differ_with_the_prompt(alone):
    """Else nothing below would mean anything."""
    texts, scores = alone
    assert len(set(texts)) > 3
    assert np.std(scores, axis=0).min() > 0.1


@pytest.mark.parametrize(
    ("batch_size", "buckets"),
    [(2, {}), (16, {"lengths": (8, 32), "candidates_per_pass": 2})],
    ids=["split into batches", "split by shape"],
)
def test_a_batch_gives_what_each_prompt_gives(model, alone, batch_size, buckets):
    """Padding and company do not matter (float32 in other shapes: 1e-4 on scores of about 10)."""
    texts, scores = answers(
        model, batch_size=batch_size, config=dataclasses.replace(tiny.CONFIG, **buckets)
    )
    assert texts == alone[0]
    np.testing.assert_allclose(scores, alone[1], atol=1e-4)


def test_unrolled_layers_give_the_same(model, tmp_path_factory):
    """Each layer with its own weights and cache, which beams reorder (1e-4 as above)."""
    config = dataclasses.replace(tiny.CONFIG, decoding="beam")
    unrolled = tiny.load(
        tmp_path_factory.getbasetemp(), config=dataclasses.replace(config, layers="unrolled")
    )
    (texts, scores), expected = answers(unrolled), answers(model, config=config)
    assert texts == expected[0]
    np.testing.assert_allclose(scores, expected[1], atol=1e-4)
    assert fingerprint(unrolled.engine.params) == fingerprint(model.engine.params)


def test_eight_devices_give_what_one_gives(alone, tmp_path_factory):
    """Prompts over replica x data, images over all axes (1e-4 as above)."""
    mesh = make_mesh(MeshConfig(replica=2, data=2, model=2))
    texts, scores = answers(tiny.load(tmp_path_factory.getbasetemp(), mesh=mesh))
    assert texts == alone[0]
    np.testing.assert_allclose(scores, alone[1], atol=1e-4)


def test_one_prompt_or_many(model, alone):
    texts, scores = alone
    assert model.generate(PROMPTS, batch_size=1) == texts
    assert model.score(PROMPTS, CANDIDATES, batch_size=1) == scores
    assert model.generate("question : red circle answer :") == texts[3]
    # a list of strings is a batch
    assert model.generate(["question : red circle answer :"]) == [texts[3]]
    assert model.score(["question : red circle answer :"], CANDIDATES) == [scores[3]]
    # one prompt in two parts
    assert model.generate([["question :", "red circle answer :"]]) == [texts[3]]


def test_the_image_matters(model):
    first, second = (model.score([tiny.image(seed), "this is a"], CANDIDATES) for seed in (2, 5))
    assert np.abs(np.subtract(first, second)).max() > 1e-2


def test_scores_are_log_likelihoods_of_the_text(model):
    """The score of a continuation is the sum of those of its steps (1e-4)."""
    prompt, rest = [tiny.image(2), "this is a"], CANDIDATES[1:]
    whole = model.score(prompt, ["big green square", *rest])[0]
    steps = [
        model.score([*prompt, before], [word, *rest])[0]
        for before, word in (("", "big"), ("big", "green"), ("big green", "square"))
    ]
    np.testing.assert_allclose(whole, sum(steps), atol=1e-4)


def test_beams_find_nothing_worse_than_greedy(model):
    requests = [Request(model.read(prompt)) for prompt in PROMPTS]
    greedy = model.engine.answer(requests, batch_size=1)
    beam = model.engine.answer(requests, method=BEAMS)
    gains = [
        best.log_likelihood - first.log_likelihood for best, first in zip(beam, greedy, strict=True)
    ]
    assert min(gains) > -1e-4 and max(gains) > 1e-3
    assert model.generate(PROMPTS, method=BEAMS) == [model.text(answer) for answer in beam]


def test_what_is_drawn_does_not_depend_on_the_company(model):
    """The same prompts in reverse order: the same answers; with another seed, others."""
    method = Sample(temperature=1.5, top_p=0.95, seed=3, max_new_tokens=tiny.CONFIG.max_new_tokens)
    texts = model.generate(PROMPTS, method=method, batch_size=4)
    assert model.generate(PROMPTS[::-1], method=method, batch_size=4) == texts[::-1]
    assert (
        model.generate(PROMPTS, method=dataclasses.replace(method, seed=4), batch_size=4) != texts
    )


def test_an_image_is_encoded_once(tmp_path_factory, alone, monkeypatch):
    model, seen = tiny.load(tmp_path_factory.getbasetemp()), []
    call = Compiled.__call__

    def counting(self, function, *inputs, **static):
        if function.__name__ == "encode":
            seen.append(len(inputs[0]))
        return call(self, function, *inputs, **static)

    monkeypatch.setattr(Compiled, "__call__", counting)
    for _ in range(2):
        assert answers(model, batch_size=2)[0] == alone[0]
        # One pass for images 0, 1, 2 of the first two prompts, and one for image 3 of the next two.
        assert seen == [8, 8]


def test_latents_beyond_the_memory_bound_are_dropped(tmp_path_factory, alone):
    small = tiny.load(
        tmp_path_factory.getbasetemp(), config=dataclasses.replace(tiny.CONFIG, latents_megabytes=0)
    )
    assert answers(small, batch_size=2)[0] == alone[0]
    assert len(small.engine._latents) == 0


def test_chunked_cross_attention_gives_the_same(model, alone):
    """The prefill of many shots by chunks against the full form (float32: 1e-4)."""
    phi = model.read(PROMPTS[4]).media_index
    assert xattn_chunk(np.pad(phi, (0, 32 - len(phi)))[None], 4, 4) == (4, 2)
    side_by_side = np.asarray([[1, 2, 2, 2, 2, 2, 2, 2]], np.int32)
    assert [xattn_chunk(side_by_side, 4, 4, runs=runs) for runs in (False, True)] == [(4, 2)] * 2
    late = np.asarray([[0, 0, 0, 1, 2, 2, 2, 2]], np.int32)
    assert [xattn_chunk(late, 2, 4, runs=runs) for runs in (False, True)] == [(4, 1), None]
    texts, scores = answers(
        model, PROMPTS[4:], config=dataclasses.replace(tiny.CONFIG, xattn_chunk=4)
    )
    assert texts == alone[0][4:]
    np.testing.assert_allclose(scores, alone[1][4:], atol=1e-4)


def test_a_language_model_whose_tokenizer_has_no_eoc_refuses_images(tmp_path_factory, monkeypatch):
    lm = tiny.load(tmp_path_factory.getbasetemp(), kind="language_model")
    monkeypatch.setattr(lm, "tokenizer", None)  # it refuses before it tokenises
    with pytest.raises(PromptError, match=r"1 image\(s\), but this checkpoint is a language model"):
        lm.generate(PROMPTS[1])


def test_a_language_model_answers_text_and_refuses_images(tmp_path_factory):
    lm = tiny.load(tmp_path_factory.getbasetemp(), kind="language_model")
    texts, scores = answers(lm, [PROMPTS[3]])
    assert texts[0] and len(scores[0]) == 3
    with pytest.raises(PromptError, match=r"1 image\(s\), but this checkpoint is a language model"):
        lm.generate(PROMPTS[1])


def test_prompts_too_long_and_candidates_without_text(model):
    with pytest.raises(PromptError, match="has 41 tokens; expected at most 32"):
        model.generate("red " * 40)
    with pytest.raises(PromptError, match="has 5 images; expected at most 4"):
        model.generate([tiny.image(seed) for seed in range(5)])
    with pytest.raises(PromptError, match="candidate 1 is empty"):
        model.score("red", ["blue", ""])
