"""Where prompts are cut: after an `<EOC>`, at what enough of them share, and only if it pays."""

import numpy as np
import pytest

from flamingo_jax.inference.identity import each_once
from flamingo_jax.inference.prompt import Image, PromptError, TokenisedPrompt
from flamingo_jax.inference.shared_prefix import (
    WHOLE,
    Cut,
    is_worth,
    rest_of,
    shared_cuts,
    start_of,
)

BOS, IMAGE, EOC = 1, 2, 3
LENGTHS = (32, 64, 128, 256)
SHOT = 40  # tokens


def prompt(shots, query="q", words=5):
    """Each shot is a letter, its image, and text of this letter; the query's has no end."""
    tokens, phi = [BOS], [0]
    for number, letter in enumerate((*shots, query), start=1):
        text = [ord(letter)] * (words - 1 if number > len(shots) else SHOT - 2)
        own = [IMAGE, *text, *([EOC] if number <= len(shots) else [])]
        tokens, phi = tokens + own, phi + [number] * len(own)
    visuals = tuple(letter.encode() for letter in (*shots, query))
    return TokenisedPrompt(np.asarray(tokens, np.int32), np.asarray(phi, np.int32), visuals)


def cuts(prompts, batch_size=4, lengths=LENGTHS):
    return shared_cuts(
        prompts, ends=(EOC,), lengths=lengths, batch_size=batch_size, identity=each_once()
    )


def test_prompts_are_cut_where_their_common_examples_end():
    prompts = [prompt("abc", query) for query in "uvw"]
    assert cuts(prompts) == [Cut(0, 1 + 3 * SHOT)] * 3
    assert cuts([prompt("xyz"), *prompts]) == [WHOLE, *[Cut(1, 1 + 3 * SHOT)] * 3]
    # Of a short query, a short prefix is not worth it: its own places are others.
    assert cuts([prompt("abc"), prompt("abc", words=30)]) == [Cut(0, 1 + 3 * SHOT)] * 2
    # Two of four share more than all do.
    assert cuts([prompt("abc"), prompt("abcd"), prompt("abc"), prompt("abcd")]) == [
        *(Cut(0, 1 + 3 * SHOT), Cut(1, 1 + 4 * SHOT)) * 2
    ]


def test_few_prompts_of_a_batch_are_not_worth_a_batch_of_their_own():
    prompts = [prompt("abc", "u"), *(prompt(letter * 3) for letter in "defgh"), prompt("abc", "v")]
    assert cuts(prompts, batch_size=8) == [WHOLE] * 7
    assert cuts(prompts, batch_size=4)[0] == Cut(0, 1 + 3 * SHOT)
    assert cuts(prompts[:1], batch_size=4) == [WHOLE]


def test_a_prefix_ends_where_text_phi_or_a_visual_differs():
    one, same_text = prompt("abc"), prompt("abc")
    other = TokenisedPrompt(
        same_text.tokens, same_text.media_index, (*same_text.visuals[:2], b"another", b"q")
    )
    assert cuts([one, other]) == [Cut(0, 1 + 2 * SHOT)] * 2
    masked = TokenisedPrompt(one.tokens, np.zeros_like(one.media_index), one.visuals)
    assert cuts([one, masked]) == [WHOLE] * 2
    assert cuts([masked, masked]) == [Cut(0, 1 + 3 * SHOT)] * 2


def test_no_visual_is_looked_at_unless_the_texts_agree():
    missing = tuple(Image(f"{number}.jpg") for number in range(4))
    prompts = [
        TokenisedPrompt(each.tokens, each.media_index, missing)
        for each in (prompt("abc"), prompt("dbc"))
    ]
    assert cuts(prompts) == [WHOLE] * 2
    with pytest.raises(PromptError, match="there is no image file"):
        cuts([prompts[0], prompts[0]])


def test_a_prefix_must_save_half_of_the_padded_length():
    long = prompt("abc", words=30)  # 151 tokens
    assert is_worth(121, long, LENGTHS)
    assert is_worth(64, long, LENGTHS)
    assert not is_worth(63, long, LENGTHS)
    assert not is_worth(121, long, (256,))  # the rest is padded to as much as the whole
    assert not is_worth(len(long.tokens), long, LENGTHS)
    assert not is_worth(64, long, (32, 160))


@pytest.mark.parametrize("cut", [1 + SHOT, SHOT, SHOT + 10], ids=["example", "<EOC>", "text"])
def test_the_rest_has_the_images_from_that_of_its_first_token_on(cut):
    whole = prompt("abc")
    start, rest = start_of(whole, cut), rest_of(whole, cut)
    np.testing.assert_array_equal([*start.tokens, *rest.tokens], whole.tokens)
    shown = [start.visuals[phi - 1] if phi else None for phi in start.media_index]
    shown += [rest.visuals[phi - 1] if phi else None for phi in rest.media_index]
    assert shown == [whole.visuals[phi - 1] if phi else None for phi in whole.media_index]
    assert len(start.visuals) == start.media_index.max()
    assert rest.media_index.min() == 1
    assert len(rest.visuals) == rest.media_index.max()


def test_text_without_images():
    whole = TokenisedPrompt(np.arange(9, dtype=np.int32), np.zeros(9, np.int32), ())
    for part in (start_of(whole, 4), rest_of(whole, 4)):
        assert not part.visuals
        assert not part.media_index.any()
