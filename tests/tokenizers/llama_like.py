"""Small vocabularies made in the way of public models."""

import io
import json
import pathlib

import sentencepiece
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

LINES = [
    "Question: Is it hateful? Answer: yes",
    "Question: what is it? Answer: no",
    "Output: a cat on a bike.",
    "Caption: a person cuts a phone",
    "User: what is it?",
    "Assistant: a dog",
] * 40
NEW = ("<EOC>", "<image>")


def model(**options) -> bytes:
    """A tokenizer.model with the options of LLaMA's and Mistral's, except for `options`."""
    content = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 400,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "add_dummy_prefix": True,
        "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True,
        "unk_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "pad_id": -1,
        "hard_vocab_limit": False,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=content, **{**settings, **options}
    )
    return content.getvalue()


def vocabulary(content: bytes) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """(piece -> id, merges) of a BPE model; a piece with a lower id is merged first."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=content)
    names = [pieces.id_to_piece(number) for number in range(pieces.vocab_size())]
    ids = {name: number for number, name in enumerate(names)}
    merges = [
        (name[:cut], name[cut:])
        for name in names
        if not name.startswith("<")
        for cut in range(1, len(name))
        if name[:cut] in ids and name[cut:] in ids
    ]
    return ids, sorted(merges, key=lambda pair: ids["".join(pair)])


def directory(place: pathlib.Path, content: bytes, **config) -> pathlib.Path:
    """A directory with tokenizer.model, and with tokenizer_config.json if it says anything."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "tokenizer.model").write_bytes(content)
    if config:
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place


def metaspace(content: bytes, scheme: str) -> Tokenizer:
    """The model as a tokenizer.json; "prepend" has the normalizer, else Metaspace's scheme."""
    made = Tokenizer(
        models.BPE(*vocabulary(content), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if scheme == "prepend":
        prefix = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        made.normalizer = normalizers.Sequence(prefix)
    else:
        made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    made.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] * (scheme != "never"))])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    return made


def byte_level(*, add_prefix_space: bool = False) -> Tokenizer:
    """GPT-2's kind, which OPT, GPT-NeoX and Llama 3 share."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<s>", "</s>"],
        show_progress=False,
    )
    made.train_from_iterator(LINES, trainer)
    return made


def json_directory(place: pathlib.Path, made: Tokenizer) -> pathlib.Path:
    """A directory with tokenizer.json and the names of its special pieces."""
    place.mkdir(parents=True, exist_ok=True)
    made.save(str(place / "tokenizer.json"))
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    (place / "tokenizer_config.json").write_text(json.dumps(names))
    return place
