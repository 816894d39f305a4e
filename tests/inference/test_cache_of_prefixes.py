"""A prefix that is read once gives the answers of prompts that are read whole."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from flamingo_jax.inference import compiled
from flamingo_jax.inference.answering import read_and_answer
from flamingo_jax.inference.cache_of_prefixes import CachedPrefix, PrefixCache
from flamingo_jax.inference.identity import identity
from flamingo_jax.inference.methods import BeamSearch, Greedy, Sample
from flamingo_jax.inference.prompt import Image, TokenisedPrompt
from flamingo_jax.models import api
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from tests.inference import tiny

# Sums in another order, float32, on log-likelihoods of about 10.
CLOSE = 1e-4
CONFIG = dataclasses.replace(tiny.CONFIG, lengths=(32, 128), num_images=(5,), max_new_tokens=4)
WHOLE = dataclasses.replace(CONFIG, prefix_megabytes=0)
SUPPORTS = [
    part
    for seed, word in enumerate(("red", "green", "blue"))
    for part in (
        tiny.image(seed),
        f"question : this is a big {word} circle and a small {word} square and a big blue circle "
        f"and a small red square answer : this is a big {word} dax<EOC>",
    )
]
QUERIES = [
    [tiny.image(3), "output :"],
    [tiny.image(4), "question : this is a big red circle and a small square answer :"],
    ["this is a"],  # it attends the last support's image
    [tiny.image(5), "this is a dax<EOC>", tiny.image(0), "this is a"],
]
PROMPTS = [[*SUPPORTS, *query] for query in QUERIES[:3]]
CANDIDATES = ["red", "blue circle", "a big green square"]
GREEDY, BEAMS = Greedy(4), BeamSearch(3, max_new_tokens=4)
DRAWN = Sample(seed=3, max_new_tokens=4)

RELATIVE = LMConfig(8, num_layers=2, width=8, num_heads=2, vocab_multiple=8, tied_head=False)
KINDS = {
    "relative": {},
    "alibi, one group": {"position": "alibi", "num_kv_heads": 1},
    "rotary, a convolution": {"position": "rotary", "qkv_conv_width": 3},
    "learned, in parallel": {"position": "learned", "max_length": 32, "parallel_residual": True},
    "none, a window": {"position": "none", "sliding_window": 5},
    "rotary, a window and another base in each first of two layers": {
        "position": "rotary",
        "sliding_window": 5,
        "global_every": 2,
        "local_rotary_base": 50.0,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_positions_goes_on_from_a_prefix(kind):
    """A prefix of 7 tokens, padded to 8, then 1, 3 and 4 tokens, padded to 4."""
    model = api.language_model(dataclasses.replace(RELATIVE, **KINDS[kind]))
    params = tiny.weights(jax.eval_shape(model.init, jax.random.key(0)))
    rng = np.random.default_rng(0)
    start, rest = rng.integers(1, 8, (1, 7)), rng.integers(1, 8, (3, 4))
    whole = np.concatenate([np.repeat(start, 3, axis=0), rest], axis=1)
    padded = np.concatenate([start, [[5]]], axis=1)  # padding that is a real token
    candidates = (np.arange(1, 7).reshape(3, 2, 1), np.ones((3, 2)))
    inputs = (whole, rest, padded, np.asarray([1, 3, 4]), candidates)
    answer = functools.partial(
        read_and_answer,
        model=model,
        stop=(0,),
        pad_id=0,
        chunk=None,
        normalise="sum",
        candidates_per_pass=2,
    )

    @jax.jit
    def both(params, whole, rest, padded, sizes, candidates):
        def read(tokens, length, cached=None):
            prompts = (tokens, length, 0 * tokens, candidates, None, cached)
            return answer(params, None, *prompts, method=Greedy(2))[:2]

        alone = (padded, jnp.full(1, 7, jnp.int32), 0 * padded, None, None)
        _, _, rows = answer(params, None, *alone, method=None, keep=(8, 1))
        return read(whole, 7 + sizes), read(rest, sizes, (rows, jnp.full(3, 7, jnp.int32)))

    inputs = jax.tree.map(lambda x: jnp.asarray(x, jnp.int32), inputs)
    (expected, scores), (found, other_scores) = both(params, *inputs)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    assert len(np.unique(expected.tokens, axis=0)) > 1
    np.testing.assert_allclose(found.score, expected.score, atol=CLOSE)
    np.testing.assert_allclose(other_scores, scores, atol=CLOSE)


class Recorded:
    """Notes the shapes of the tokens that an engine reads."""

    def __init__(self, engine, monkeypatch):
        self.shapes, run = [], engine.compiled.on_devices

        def on_devices(function, *inputs, **static):
            if function is read_and_answer:
                self.shapes.append(inputs[1].shape)
            return run(function, *inputs, **static)

        monkeypatch.setattr(engine.compiled, "on_devices", on_devices)

    def since(self):
        shapes, self.shapes = self.shapes, []
        return shapes


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp(), config=CONFIG)


def answers(model, prompts=PROMPTS, config=CONFIG, **settings):
    requests = [model.request(prompt, CANDIDATES) for prompt in prompts]
    return model.engine.answer(requests, config=config, **settings)


def assert_close(found, expected):
    assert [one.tokens for one in found] == [one.tokens for one in expected]
    numbers = lambda replies: [[one.log_likelihood, *one.scores] for one in replies]
    np.testing.assert_allclose(numbers(found), numbers(expected), atol=CLOSE)


@pytest.fixture(scope="module")
def expected(model):
    """Answers to prompts that are read whole."""
    found = answers(model, config=WHOLE, method=GREEDY)
    assert len({one.tokens for one in found}) > 1
    assert np.std([one.scores for one in found], axis=0).min() > 0.1
    return found


def test_shared_examples_are_read_once(model, expected, monkeypatch):
    """In one call and in the next: to the bit the same, whether it was read now or before."""
    seen = Recorded(model.engine, monkeypatch)
    first = answers(model, method=GREEDY)
    assert seen.since() == [(1, 128), (4, 32)]
    assert_close(first, expected)
    assert answers(model, method=GREEDY) == first
    assert seen.since() == [(4, 32)]


def test_beams_go_on_from_a_prefix(model, monkeypatch):
    whole = answers(model, config=WHOLE, method=BEAMS)
    seen = Recorded(model.engine, monkeypatch)
    assert_close(answers(model, method=BEAMS), whole)
    assert seen.since()[-1] == (4, 32)


def test_eight_devices_and_layers_of_their_own(expected, tmp_path_factory, monkeypatch):
    """Each data shard has its own copy of the prefix."""
    mesh = make_mesh(MeshConfig(replica=2, data=2, model=2))
    config = dataclasses.replace(CONFIG, layers="unrolled")
    model = tiny.load(tmp_path_factory.getbasetemp(), mesh=mesh, config=config)
    seen = Recorded(model.engine, monkeypatch)
    assert_close(answers(model, config=config, method=GREEDY), expected)
    assert seen.since() == [(4, 128), (4, 32)]


def test_one_prompt_goes_on_from_an_earlier_one(tmp_path_factory, monkeypatch):
    """The same question again, other questions about the same examples, and another dialogue.

    Later prompts compile nothing new.
    """
    directory = tmp_path_factory.getbasetemp()
    model = tiny.load(directory, config=CONFIG)
    seen = Recorded(model.engine, monkeypatch)
    prompts = [[*SUPPORTS, *query] for query in QUERIES]
    asked = [prompts[0], prompts[0], prompts[2], prompts[1], prompts[3]]
    found, programs = [], []
    for prompt in asked:
        found.append(model.generate(prompt, method=DRAWN))
        programs.append(compiled._run._cache_size())
    assert seen.since() == [(1, 128), *[(1, 32)] * 4]
    # The last prompt is the first with two images after the examples, which are padded to five.
    assert np.diff(programs).tolist() == [1, 0, 0, 1]
    whole = tiny.load(directory, config=WHOLE)
    assert found == [whole.generate(prompt, method=DRAWN) for prompt in asked]
    assert len(set(found)) > 2


def test_a_dialogue_is_read_turn_by_turn(tmp_path_factory, monkeypatch):
    """A text-only prefix, then an image after it, then a question about that image."""
    directory = tmp_path_factory.getbasetemp()
    model, whole = (tiny.load(directory, config=config) for config in (CONFIG, WHOLE))
    said = ["this is a big red circle " * 6, [tiny.image(1), "and this"], "a red square"]
    seen = Recorded(model.engine, monkeypatch)
    chat, other = (each.chat(method=DRAWN) for each in (model, whole))
    found = [chat.say(words) for words in said]
    assert seen.since() == [(1, 128), (1, 32), (1, 32)]
    assert found == [other.say(words) for words in said]
    assert len(set(found)) > 1


def test_a_file_that_changes_while_it_is_read_is_not_kept(model, tmp_path, monkeypatch):
    """Its identity would be that of other pixels."""
    engine, file = model.engine, tmp_path / "camera.png"
    first, second = (PIL.Image.fromarray(tiny.image(seed)) for seed in (0, 1))
    prompt = [Image(file), "this is a big red circle " * 13]
    latents, kept = engine._latents, len(engine._prefixes)

    def rewritten(visuals):
        second.save(file)
        return latents(visuals)

    for changed in (rewritten, latents):
        first.save(file)
        monkeypatch.setattr(engine, "_latents", changed)
        model.generate(prompt, method=DRAWN)
        assert len(engine._prefixes) == kept + (changed is latents)


@pytest.mark.parametrize("fields", [{"unseen": "average"}, {"attend": "all"}])
def test_a_model_whose_tokens_see_images_of_the_other_part_reads_whole_prompts(fields):
    config = tiny.flamingo_config(64)
    other = dataclasses.replace(config, xattn=dataclasses.replace(config.xattn, **fields))
    assert api.flamingo(config).reads_in_parts
    assert not api.flamingo(other).reads_in_parts


def known(text, *, size=64, alone=False, visuals=()):
    tokens = np.frombuffer(text.encode(), np.uint8).astype(np.int32)
    rows = {"key": jnp.zeros((1, 1, size, 2, 1024)), "value": jnp.zeros((1, 1, size, 2, 1024))}
    return CachedPrefix(tokens, np.zeros_like(tokens), visuals, rows, alone)


def as_prompt(text):
    one = known(text)
    return TokenisedPrompt(one.tokens, one.media_index, ())


def test_the_memory_is_bounded_and_what_was_used_last_is_kept():
    """Each of 64 tokens is 16 KiB here, 1 MiB in all."""
    prefixes = PrefixCache(megabytes=2)
    for letter in "ab":
        prefixes.keep(known(letter * 70, alone=True))
    assert prefixes.get(as_prompt("a" * 70), identity, alone=True) is not None
    prefixes.keep(known("c" * 70))
    assert len(prefixes) == 2
    assert prefixes.get(as_prompt("b" * 70), identity, alone=True) is None
    assert prefixes.get(as_prompt("a" * 70), identity, alone=True) is not None
    prefixes.keep(known("d" * 70, size=256))  # more than there is room for
    assert prefixes.get(as_prompt("d" * 70), identity, alone=False) is None
    assert len(prefixes) == 2
    assert not PrefixCache(megabytes=0).longest(as_prompt("a"), (32,), identity)


def test_a_cached_prefix_serves_up_to_an_image_that_differs():
    """80 tokens of one image, then 80 of another one."""
    prefixes, images = PrefixCache(megabytes=8), [tiny.image(seed) for seed in range(3)]
    one, phi = known("a" * 160, size=256), np.repeat(np.asarray([1, 2], np.int32), 80)
    visuals = tuple(map(identity, images[:2]))
    prefixes.keep(dataclasses.replace(one, media_index=phi, visuals=visuals))

    def longest(*visuals, media_index=phi):
        prompt = TokenisedPrompt(one.tokens, media_index, visuals)
        found = prefixes.longest(prompt, (128, 256), identity)
        assert (prefixes.get(prompt, identity, alone=False) is None) == (found < 159)
        return found

    assert longest(images[0], images[1].copy()) == 159
    assert longest(images[0], images[2]) == 80
    assert longest(images[2], images[1]) == 0
    assert longest(media_index=0 * phi) == 0


def test_a_dialogue_takes_the_place_of_its_earlier_turns():
    prefixes = PrefixCache(megabytes=8)
    for turns in (70, 80, 90):
        prefixes.keep(known("a" * turns))
    assert len(prefixes) == 1
    prefixes.keep(known("b" * 70, alone=True))
    prefixes.keep(known("b" * 80))
    assert len(prefixes) == 3  # what was read by itself gives the same to the bit again
    assert prefixes.get(as_prompt("b" * 75), identity, alone=False) is not None
    assert prefixes.get(as_prompt("b" * 75), identity, alone=True) is None
    assert prefixes.longest(as_prompt("a" * 75 + "c" * 20), (32, 128), identity) == 75
    assert prefixes.longest(as_prompt("a" * 90), (32, 128), identity) == 89
    assert prefixes.longest(as_prompt("a" * 63 + "c" * 9), (32, 128), identity) == 0


def test_prompts_of_a_batch_are_cut_at_a_known_prefix_or_where_they_part():
    """All have 80 tokens in common and then 4 others; rests of up to 32 tokens are padded alike."""
    prefixes, lengths = PrefixCache(megabytes=8), (32, 128)
    prompts = [as_prompt("a" * 80 + 4 * letter) for letter in "bcd"]

    def longest(some):
        return prefixes.longest_of_all(some, lengths, identity)

    assert longest(prompts[:1]) == 0  # one prompt alone has nobody to share with
    assert longest(prompts) == 80
    assert longest([*prompts, as_prompt("x" * 84)]) == 0
    assert longest([prompts[0]] * 2) == 83  # something is read of each
    prefixes.keep(known("a" * 70 + "x", size=128))
    assert longest(prompts) == 70  # known, and the rests are padded to 32 as well
    assert longest([as_prompt("a" * 104 + letter) for letter in "bc"]) == 104
