"""What the page shows besides the answer, as HTML: candidates, phi and gates.

Every text is escaped. The pages have no script and no outside resource.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from flamingo_jax.core import html_page, trees
from flamingo_jax.core.trees import Params
from flamingo_jax.inference.prompt import TokenisedPrompt, Visual, load_frames
from flamingo_jax.models.media_context import Attends
from flamingo_jax.tokenizers.base import Tokenizer

_THUMBNAIL = 56  # pixels
_NUM_COLOURS = 8


@dataclasses.dataclass(frozen=True)
class _Bar:
    name: str
    value: str
    width: float  # percent
    is_best: bool = False
    is_negative: bool = False


@dataclasses.dataclass(frozen=True)
class _Piece:
    text: str
    colour: int  # of its image; 0 = none
    is_answer: bool


def candidates(texts: Sequence[str], scores: Sequence[float]) -> str:
    """Returns bars of candidates, the best first.

    Args:
        texts: the candidates.
        scores: log-likelihood of each. A bar is its share: exp(score) over the sum of all.
    """
    largest = max(scores)
    shares = [math.exp(score - largest) for score in scores]
    order = sorted(range(len(texts)), key=lambda i: -scores[i])
    bars = [
        _Bar(
            texts[i].strip(),
            f"{shares[i] / sum(shares):.1%} · log-likelihood {scores[i]:.2f}",
            100 * shares[i] / sum(shares),
            is_best=i == order[0],
        )
        for i in order
    ]
    return _render("bars", bars=bars, note="", layers=())


def gates(params: Params) -> str:
    """Returns bars of tanh(alpha) of each cross-attention layer (paper, Figure 6).

    Args:
        params: weights of a model.
    """
    found = gate_values(params)
    layers = [
        (
            f"Layer {i + 1}",
            [
                _Bar(kind, f"{values[i]:+.3f}", 100 * abs(values[i]), is_negative=values[i] < 0)
                for kind, values in found.items()
            ],
        )
        for i in range(max(map(len, found.values()), default=0))
    ]
    note = (
        "tanh of each gate. At 0 a layer adds nothing, and the model is its language model."
        if layers
        else "This model has no gates."
    )
    return _render("bars", bars=(), note=note, layers=layers)


def gate_values(params: Params) -> dict[str, list[float]]:
    """Returns {"attention": [tanh of each layer], "dense": [...]}; {} without gates.

    Of a gate with one value per channel it is the mean of |tanh|.
    """
    found: dict[str, list[float]] = {}
    for path, leaf in trees.flatten(params).items():
        name = path.rpartition("/")[2]
        if name in ("attention_gate", "dense_gate"):
            values = np.tanh(np.asarray(leaf, np.float32))
            values = np.abs(values).mean(-1) if values.ndim > 1 else values
            found.setdefault(name.removesuffix("_gate"), []).extend(map(float, np.ravel(values)))
    return found


def attended(
    prompt: TokenisedPrompt, answer: Sequence[int], tokenizer: Tokenizer, *, attends: Attends
) -> str:
    """Returns the tokens of a prompt and its answer, each with the colour of its image, phi.

    Args:
        prompt: tokenised.
        answer: token ids that the model wrote; they attend the last image.
        tokenizer: of the model.
        attends: the images that a token attends.
    """
    last = int(prompt.media_index[-1])
    phi = [*map(int, prompt.media_index), *[last] * len(answer)]
    ids = [*map(int, prompt.tokens), *answer]
    pieces = [
        _Piece(piece_of(i, tokenizer), _colour(image), position >= len(prompt.tokens))
        for position, (i, image) in enumerate(zip(ids, phi, strict=True))
    ]
    images = [
        (number + 1, _colour(number + 1), thumbnail(visual), phi.count(number + 1))
        for number, visual in enumerate(prompt.visuals)
    ]
    return _render("attended", pieces=pieces, images=images, attends=attends)


def piece_of(token: int, tokenizer: Tokenizer) -> str:
    """Returns the text of one token; special ones have a name."""
    if token >= tokenizer.vocab_size:
        return tokenizer.new_tokens[token - tokenizer.vocab_size]
    if token in (tokenizer.bos_id, *tokenizer.start_ids):
        return "<BOS>"
    names = {tokenizer.eos_id: "<EOS>", tokenizer.eoc_id: "<EOC>"}
    return names.get(token) or tokenizer.decode([token]) or f"#{token}"


def thumbnail(visual: Visual) -> str:
    """Returns an image, or the first frame of a video, as a data: URL."""
    return html_page.embedded(load_frames(visual, _THUMBNAIL)[0])


def _colour(image: int) -> int:
    return 1 + (image - 1) % _NUM_COLOURS if image else 0


def _render(name: str, **values: Any) -> str:
    folder = html_page.environment(os.path.dirname(__file__))
    return folder.get_template(f"{name}.html").render(**values)
