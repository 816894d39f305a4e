"""A small BERT vocabulary, trained on a few lines, and the ways in which it is published."""

import functools
import json

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, trainers

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LINES = [
    "A cat's whiskers, and a dog on a bike.",
    "Two people are playing chess in the park!",
    "naïve café über Ångström 東京タワー",
] * 5


@functools.cache
def vocabulary(*, lowercase: bool = True) -> tuple[str, ...]:
    """Returns the pieces in the order of their ids."""
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=list(SPECIAL), show_progress=False
    )
    made.train_from_iterator(LINES, trainer)
    return tuple(sorted(made.get_vocab(), key=made.get_vocab().get))


def directory(place, pieces=None, **config):
    """Writes vocab.txt and, if there are fields, tokenizer_config.json; returns the directory."""
    place.mkdir(parents=True, exist_ok=True)
    (place / "vocab.txt").write_text("".join(f"{piece}\n" for piece in pieces or vocabulary()))
    if config:
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    return place
