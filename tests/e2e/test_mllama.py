"""Llama 3.2 Vision, small and random, in its publisher's files: converted, it answers as they do.

The steps are those of a user: convert, load, generate, chat, evaluate, and export.
"""

import json

import numpy as np
import PIL.Image
import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, processors

from flamingo_jax.checkpoint.export import export, open_checkpoint
from flamingo_jax.conversion import publishers, writing
from flamingo_jax.core.paths import Path
from flamingo_jax.inference import chat
from flamingo_jax.inference.methods import Greedy
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.prompt import PromptError
from flamingo_jax.tokenizers import markers as markers_lib
from tests.e2e.test_public_weights import ANSWER, CONFIG, assert_evaluates
from tests.inference import tiny
from tests.parity import test_mllama as theirs

pytestmark = pytest.mark.parity

HEADERS = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", *HEADERS, "<|finetune_right_pad_id|>")
SPECIAL += ("<|reserved_special_token_0|>", "<|reserved_special_token_1|>")
V = 256 + len(SPECIAL)
BEGIN, END, END_OF_TURN = 256, 257, 260
SIZES = ((30, 60), (20, 25))  # of images, in pixels: two tiles, and one
# What the template of the instruct models writes for a user with images, without tools or system.
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start_header_id|>{{ message['role'] }}"
    "<|end_header_id|>\n\n{% if message['content'] is string %}{{ message['content'] | trim }}"
    "{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}<|image|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)


def llama3() -> tokenizers.Tokenizer:
    """A tokenizer.json as Llama 3 has it, of single bytes; <|image|> is behind the vocabulary."""
    names = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(models.BPE({name: k for k, name in enumerate(names)}, []))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([*SPECIAL, "<|image|>"])
    made.post_processor = processors.TemplateProcessing(
        "<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", BEGIN)]
    )
    return made


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """The files of an instruct model, with several shards of weights."""
    place = tmp_path_factory.mktemp("mllama")
    theirs.reference(V).save_pretrained(place, max_shard_size="100KB")
    (place / "tokenizer.json").write_text(llama3().to_str())
    texts = {
        "tokenizer_config.json": {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
            "chat_template": TEMPLATE,
        },
        "generation_config.json": {"eos_token_id": [END, END_OF_TURN], "bos_token_id": BEGIN},
        "preprocessor_config.json": {
            "image_mean": theirs.MEAN.tolist(),
            "image_std": theirs.DEVIATION.tolist(),
            "max_image_tiles": theirs.TILES,
            "size": {"height": theirs.IMAGE_SIZE, "width": theirs.IMAGE_SIZE},
            "resample": 2,
        },
    }
    for name, content in texts.items():
        (place / name).write_text(json.dumps(content))
    return place


@pytest.fixture(scope="module")
def converted(directory, tmp_path_factory):
    assert len(list(directory.glob("*.safetensors"))) > 1
    inputs = publishers.Inputs(Path(directory))
    place = tmp_path_factory.mktemp("converted") / "mllama"
    return writing.write(publishers.describe("mllama", inputs), place)


@pytest.fixture(scope="module")
def model(converted):
    return Flamingo.load(converted, config=CONFIG)


def images():
    rng = np.random.default_rng(4)
    return [PIL.Image.fromarray(rng.integers(0, 256, (*size, 3), np.uint8)) for size in SIZES]


def their_answer(tokens, shown) -> list[int]:
    """The greedy answer of their model, with the tiles that their processor makes."""
    import torch
    from transformers import MllamaImageProcessorPil
    from transformers.models.mllama import processing_mllama

    size = {"height": theirs.IMAGE_SIZE, "width": theirs.IMAGE_SIZE}
    colours = {"image_mean": theirs.MEAN.tolist(), "image_std": theirs.DEVIATION.tolist()}
    processor = MllamaImageProcessorPil(size=size, max_image_tiles=theirs.TILES, **colours)
    given = dict(processor([shown], return_tensors="pt"))
    mask = processing_mllama.convert_sparse_cross_attention_mask_to_dense(
        [processing_mllama.get_cross_attention_token_mask([*tokens], V)],
        given.pop("num_tiles"), theirs.TILES, len(tokens),
    )  # fmt: skip
    ids = torch.from_numpy(tokens).long()[None]
    with torch.no_grad(), theirs.as_meta_does(theirs.reference(V)):
        out = theirs.reference(V).generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            cross_attention_mask=torch.from_numpy(mask),
            max_new_tokens=ANSWER,
            do_sample=False,
            eos_token_id=[END, END_OF_TURN],
            pad_token_id=0,
            **given,
        )
    return [int(token) for token in out[0, len(tokens) :] if token not in (END, END_OF_TURN)]


def test_it_generates_what_its_own_code_does(model):
    """Greedy decoding after two images side by side, of two tiles and of one, and text around."""
    prompt = ["User: what? ", *images(), "this is a"]
    read = model.read(prompt)
    assert read.media_index.max() == 2 and read.tokens[0] == BEGIN
    expected = their_answer(read.tokens, images())
    assert len(expected) > 1
    assert model.generate(prompt, method=Greedy(ANSWER)) == model.tokenizer.decode(expected)


def test_a_dialogue_has_the_tokens_of_its_own_template(model, directory):
    """Two turns with an image each. An answer ends with <|eot_id|>."""
    import jinja2

    turns = [([images()[0], "what is it?"], "a cat"), (["and ", images()[1], "this?"], None)]
    messages = []
    said = []
    for words, answer in turns:
        parts = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
            for part in words
        ]
        messages.append({"role": "user", "content": parts})
        said += chat.turn_of(words, model.chat_template)
        if answer:
            messages.append({"role": "assistant", "content": answer})
            said.append(chat.answered(answer, model.chat_template))
    text = (
        jinja2.Environment()
        .from_string(TEMPLATE)
        .render(messages=messages, bos_token="<|begin_of_text|>", add_generation_prompt=True)
    )
    expected = llama3().encode(text, add_special_tokens=False).ids
    read = model.read(said)
    assert read.tokens.tolist() == expected
    assert model.engine.stop and END_OF_TURN in model.engine.stop and END in model.engine.stop
    answer = model.chat(method=Greedy(ANSWER)).say([images()[0], "what is it?"])
    first = model.read(chat.turn_of([images()[0], "what is it?"], model.chat_template))
    assert answer == model.tokenizer.decode(their_answer(first.tokens, images()[:1])).strip()


def test_it_evaluates(model):
    assert_evaluates(model)


def test_what_it_cannot_see_is_one_error(model):
    with pytest.raises(PromptError, match="got a video; this model sees an image as tiles"):
        model.generate([np.zeros((2, 28, 28, 3), np.uint8), "what?"])


@pytest.mark.slow
def test_its_export_is_exported_again(model, converted, tmp_path):
    """From an export to another: the same weights, prompts and answers."""
    opened = open_checkpoint(converted)
    again = export(
        tmp_path / "again",
        opened.params,
        kind=opened.kind,
        config=opened.model_config,
        tokenizer=opened.tokenizer,
        preprocessing=opened.preprocessing,
        step=opened.step,
        markers=markers_lib.read(Path(opened.tokenizer).parent),
    )
    loaded = Flamingo.load(again, config=CONFIG)
    prompt = [images()[0], "this is a"]
    assert loaded.chat_template == model.chat_template
    assert loaded.generate(prompt, method=Greedy(ANSWER)) == model.generate(
        prompt, method=Greedy(ANSWER)
    )
    np.testing.assert_array_equal(loaded.read(prompt).tokens, model.read(prompt).tokens)


def test_a_text_is_answered_as_by_the_language_model_alone(model):
    """No layer of cross-attention touches it: not even a feed-forward part."""
    import torch

    read = model.read("this is a")
    ids = torch.from_numpy(read.tokens).long()[None]
    with torch.no_grad():
        out = theirs.reference(V).generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=ANSWER,
            do_sample=False, eos_token_id=[END, END_OF_TURN], pad_token_id=0,
        )  # fmt: skip
    expected = [int(t) for t in out[0, len(read.tokens) :] if t not in (END, END_OF_TURN)]
    assert model.generate("this is a", method=Greedy(ANSWER)) == model.tokenizer.decode(expected)


@pytest.mark.slow
def test_images_of_several_sizes_are_answered_alike_in_one_batch_and_alone(model):
    prompts = [[image, "this is a"] for image in (*images(), tiny.image(3))]
    together = model.generate(prompts, method=Greedy(ANSWER))
    assert together == [model.generate(prompt, method=Greedy(ANSWER)) for prompt in prompts]
