"""Converted models answer as their publishers' code does: small random ones, in their formats."""

import dataclasses
import json

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.conversion import idefics, publishers, writing
from flamingo_jax.core.paths import Path
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.metrics import METRICS
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import evaluate
from flamingo_jax.inference.methods import Greedy
from flamingo_jax.inference.model import Flamingo, InferenceConfig
from flamingo_jax.inference.request import Request
from flamingo_jax.tokenizers.sentencepiece import train_sentencepiece
from tests.evaluation.in_memory import Colours
from tests.inference import tiny
from tests.parity import open_flamingo_models
from tests.parity import test_idefics as their_idefics

pytestmark = pytest.mark.parity

ANSWER = 6  # tokens
CONFIG = InferenceConfig(
    lengths=(64,), num_images=(3,), images_per_pass=4, max_new_tokens=ANSWER, xattn_chunk=0
)


def converted(source, inputs, output) -> Flamingo:
    writing.write(publishers.describe(source, inputs), output)
    return Flamingo.load(output, config=CONFIG)


def assert_evaluates(model) -> None:
    """Evaluates a benchmark of colours, open-ended and by ranking, at 2 shots: one row each.

    One prompt at a time, so that one program less is compiled.
    """
    for metric in ("exact_match", "ranking"):
        benchmark = FewShotTask(
            Colours(metrics=(METRICS[metric],), num_test=3), Protocol(n=0, seed=3)
        )
        rows, answers = evaluate(model, benchmark, shots=2, batch_size=1)
        (row,) = rows
        assert (row.metric, row.n, row.checkpoint) == (metric, 3, model.checkpoint)
        assert all(answer.text is not None or len(answer.scores) == 3 for answer in answers)


@pytest.fixture(scope="module")
def idefics_directory(tmp_path_factory):
    """config.json, three shards with their index, a tokenizer as LLaMA has it, and added tokens."""
    directory = tmp_path_factory.mktemp("idefics")
    path = directory / "tokenizer.model"
    train_sentencepiece(
        ["this is a red green blue dog. User: what? Assistant:"] * 4, path, 300, model_type="bpe"
    )
    variant = dataclasses.replace(their_idefics.VARIANTS["9b and 80b"], vocab_size=300)
    model = their_idefics.reference(variant)
    model.save_pretrained(directory, max_shard_size="100KB")
    names = (idefics.AROUND, "<image>", idefics.END_OF_UTTERANCE)
    (directory / "added_tokens.json").write_text(
        json.dumps({name: 300 + i for i, name in enumerate(names)})
    )
    return directory, model


@pytest.fixture(scope="module")
def idefics_model(idefics_directory, tmp_path_factory):
    inputs = publishers.Inputs(Path(idefics_directory[0]))
    return converted("idefics", inputs, tmp_path_factory.mktemp("converted") / "idefics")


def test_idefics_generates_what_its_own_code_does(idefics_directory, idefics_model):
    """Greedy decoding after two consecutive images with text on both sides.

    It is an instruct model: answers end with <end_of_utterance>.
    """
    import torch

    directory, theirs = idefics_directory
    assert len(list(directory.glob("*.safetensors"))) > 1
    images = [tiny.image(seed, their_idefics.IMAGE_SIZE) for seed in (1, 2)]
    prompt = ["User: what? ", *map(PIL.Image.fromarray, images), "this is a"]
    read = idefics_model.read(prompt)
    assert read.media_index.max() == 2
    tokens = torch.from_numpy(read.tokens).long()[None]
    with torch.no_grad():
        out = theirs.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            pixel_values=their_idefics.normalised(np.stack(images)[None]),
            image_attention_mask=their_idefics.their_mask(read.media_index[None], 2).long(),
            max_new_tokens=ANSWER,
            do_sample=False,
            num_beams=1,
            eos_token_id=[idefics_model.tokenizer.eoc_id, idefics_model.tokenizer.eos_id],
            pad_token_id=0,
        )
    expected = [
        int(token) for token in out[0, len(read.tokens) :] if token not in idefics_model.engine.stop
    ]
    assert len(expected) > 1
    assert idefics_model.generate(prompt, method=Greedy(ANSWER)) == idefics_model.tokenizer.decode(
        expected
    )


def test_idefics_evaluates(idefics_model):
    assert_evaluates(idefics_model)


def test_open_flamingo_evaluates_and_generates(tmp_path):
    inputs = open_flamingo_models.write(open_flamingo_models.build("mpt", 2), tmp_path)
    model = converted("open_flamingo", inputs, tmp_path / "export")
    assert_evaluates(model)
    prompt = [tiny.image(1), "w1 w2 <EOC>", tiny.image(2), "w3"]
    assert isinstance(model.generate(prompt, method=Greedy(ANSWER)), str)
    assert model.read(prompt).tokens[0] == model.tokenizer.id(
        "<image>"
    )  # no <BOS>: its language model was trained without


def test_a_language_model_answers_from_its_own_files(tmp_path):
    """The language model alone, as `--lm` gives it."""
    inputs = open_flamingo_models.write(open_flamingo_models.build("mpt", 2), tmp_path)
    model = converted("hf_lm", publishers.Inputs(inputs.lm), tmp_path / "export")
    (answer,) = model.engine.answer([Request(model.read("w1 w2"))], batch_size=1)
    assert answer.tokens
