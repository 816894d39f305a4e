"""The tokens of texts and of their parts are those of transformers' own tokenizers.

Each text is cut at every place. What is encoded after the first part must be the rest of the ids of
the whole text; only where a piece is in both parts, the first part loses ids.
"""

import types

import numpy as np
import pytest

from flamingo_jax.conversion import idefics
from flamingo_jax.data.interleave import IMAGE, tokenise, tokenise_text
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.tokenizers import bert_like, llama_like
from tests.tokenizers.llama_like import NEW

pytestmark = pytest.mark.parity

TEXTS = [
    "Question: Is it hateful? Answer: yes",
    "Output: a cat.<EOC>Output: a dog on a bike.<EOC>",
    "<image>Output: a cat on a bike.<EOC><image>Caption: a person",
    "what  is it?\n<image>\na dog, naïve 🦩!",
]
# A space after a new token: Metaspace writes one ▁, SentencePiece and Prepend two if they have a
# prefix there.
SPACED = ["Output:<EOC> a cat<image> yes", " Answer: no"]


def llama(content: bytes, **settings):
    """Their tokenizer of a LLaMA, with the new tokens."""
    from transformers import LlamaTokenizer

    vocab, merges = llama_like.vocabulary(content)
    made = LlamaTokenizer(vocab=vocab, merges=merges, **settings)
    made.add_special_tokens({"additional_special_tokens": list(NEW)})
    return made


def check(ours, theirs, texts):
    for text in texts:
        whole = theirs(text, add_special_tokens=False).input_ids
        assert ours.encode(text) == whole, text
        for cut in range(len(text) + 1):
            before, after = text[:cut], text[cut:]
            head = ours.encode(before)
            changed, ids = ours.join(before, after)
            assert head[: len(head) - changed] + ids == whole, (before, after)
            following = ours.encode_after(before, after)
            assert changed or following == ids
            if not any(before.endswith(token[:k]) for token in NEW for k in range(1, len(token))):
                assert ours.decode(head + following) == ours.decode(whole), (before, after)


@pytest.fixture(scope="module")
def content():
    return llama_like.model()


@pytest.mark.parametrize(
    ("config", "theirs"),
    [
        ({}, {}),
        ({"legacy": False}, {"legacy": False}),
        ({"legacy": True}, {"legacy": True}),
        ({"add_prefix_space": False}, {"add_prefix_space": False}),
    ],
    ids=["nothing is said", "not legacy", "legacy", "no prefix"],
)
def test_tokenizer_model_of_llama(tmp_path, content, config, theirs):
    ours = load_tokenizer(llama_like.directory(tmp_path, content, **config), NEW)
    spaced = SPACED[:1] if not config.get("legacy") else []
    check(ours, llama(content, **theirs), [*TEXTS, *spaced])


@pytest.mark.parametrize("scheme", ["prepend", "always", "first", "never"])
def test_tokenizer_json_of_llama(tmp_path, content, scheme):
    from transformers import PreTrainedTokenizerFast

    made = llama_like.metaspace(content, scheme)
    ours = load_tokenizer(llama_like.json_directory(tmp_path, made), NEW)
    theirs = PreTrainedTokenizerFast(tokenizer_object=made)
    theirs.add_special_tokens({"additional_special_tokens": list(NEW)})
    check(ours, theirs, [*TEXTS, *SPACED])


@pytest.mark.parametrize("add_prefix_space", [False, True])
def test_byte_level(tmp_path, add_prefix_space):
    from transformers import PreTrainedTokenizerFast

    made = llama_like.byte_level(add_prefix_space=add_prefix_space)
    ours = load_tokenizer(llama_like.json_directory(tmp_path, made), NEW)
    theirs = PreTrainedTokenizerFast(tokenizer_object=made)
    theirs.add_special_tokens({"additional_special_tokens": list(NEW)})
    check(ours, theirs, [*TEXTS, *SPACED])


def test_a_prompt_of_idefics(content):
    """The string that their processor writes for images and text; `<EOC>` is a line break."""
    from transformers import LlamaTokenizer

    added = (idefics.AROUND, "<image>")
    vocab, merges = llama_like.vocabulary(content)
    theirs = LlamaTokenizer(vocab=vocab, merges=merges)
    theirs.add_special_tokens({"additional_special_tokens": list(added)})
    ours = SentencePieceTokenizer(content, added, idefics.markers(added, 0))
    tag = f"{idefics.AROUND}<image>{idefics.AROUND}"
    parts = ["User: what ", "is it?", IMAGE, "Assistant: a do", "g<EOC>User:", IMAGE, " yes"]
    whole = f"User: what is it?{tag}Assistant: a dog\nUser:{tag} yes"
    ids = theirs(whole, add_special_tokens=False).input_ids
    assert tokenise(parts, ours, close=False)[0].tolist() == [ours.bos_id, *ids]


def test_idefics_has_nothing_between_an_image_and_the_text_after_it():
    """Their processor strips the space of the paper's templates, and our prompts have none."""
    from transformers import IdeficsProcessor

    class Written(Exception):
        pass

    class TheirTokenizer:
        bos_token, init_kwargs = "", {}

        def __call__(self, prompts, **_):
            raise Written(prompts[0])

    settings = {
        "text_kwargs": {},
        "images_kwargs": {},
        "add_eos_token": False,
        "add_end_of_utterance_token": False,
    }
    processor = types.SimpleNamespace(
        tokenizer=TheirTokenizer(),
        tokenizer_was_trained_with_end_of_utterance_token=False,
        _merge_kwargs=lambda *_, **__: settings,
        image_processor=lambda images, **_: images,
    )
    image = np.zeros((2, 2, 3), np.uint8)
    query = Episode((image, "Output:"), candidates=(), answer="", query_id="1", is_spaced=True)
    papers = query.after_images(" ")
    assert papers.prompt == "<image> Output:"
    with pytest.raises(Written) as written:
        IdeficsProcessor.__call__(processor, text=[papers.parts])
    ours = query.after_images(idefics.markers((), 0).after_image).prompt
    tag = f"{idefics.AROUND}<image>{idefics.AROUND}"
    assert ours.replace("<image>", tag) == str(written.value) == f"{tag}Output:"


CAPTIONS = [
    "A cat's whiskers, and a dog on a bike.",
    "naïve café über ÅNGSTRÖM",
    "東京タワー at 12:30pm — 100% unbelievable!!",
    "  two   people\tare\nplaying chess 🦩 ",
    "e\u0301te\u0301 \u200bzero\x00width \ufffd",
    "x" * 150,
    "",
]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"do_lower_case": True},
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True, "tokenize_chinese_chars": False},
    ],
    ids=str,
)
def test_wordpiece_of_bert(tmp_path, config):
    """vocab.txt, and the tokenizer.json that their class writes."""
    from transformers import BertTokenizerFast

    pieces = bert_like.vocabulary(lowercase=config.get("do_lower_case", True))
    place = bert_like.directory(tmp_path / "vocab", pieces, **config)
    theirs = BertTokenizerFast(
        vocab={piece: number for number, piece in enumerate(pieces)}, **config
    )
    theirs.save_pretrained(tmp_path / "json")
    for directory in (place, tmp_path / "json"):
        ours = load_tokenizer(directory, ())
        for text in CAPTIONS:
            assert tokenise_text(text, ours).tolist() == theirs(text).input_ids, text
        assert ours.pad_id == theirs.pad_token_id
