"""The text of an answer in pieces: cut at the first stop, without white space around it."""

import hypothesis
import hypothesis.strategies as st
import pytest

from flamingo_jax.serving.answer_text import AnswerText


def sent(pieces, stops):
    answer = AnswerText(stops)
    found = [answer.add(piece) for piece in pieces]
    return [*found, answer.end()], answer.stopped


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        ([" A d", "og.\n", "Use", "r: Is it"], ["User:"], ["A d", "og.", "", "", ""]),
        (["\n ", "yes ", " no "], ["User:"], ["", "yes", "  no", ""]),
        (["a Use", "d car"], ["User:"], ["a", " Used car", ""]),
        (["abab", "ac"], ["abac"], ["ab", "", ""]),
        (["User: x"], ["User:"], ["", ""]),
        (["a. b"], [], ["a. b", ""]),
    ],
)
def test_what_is_sent_when(pieces, stops, expected):
    assert sent(pieces, stops)[0] == expected


@hypothesis.given(
    pieces=st.lists(st.text("ab \n", max_size=4), max_size=8),
    stop=st.text("ab", min_size=1, max_size=3),
)
def test_in_pieces_it_is_the_text_before_the_first_stop(pieces, stop):
    found, stopped = sent(pieces, [stop])
    text = "".join(pieces)
    assert "".join(found) == text.split(stop)[0].strip() and stopped == (stop in text)
