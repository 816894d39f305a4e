"""The paper's prompt templates: the text between an example's image and its answer (paper, B.1.5).

    all tasks without a question         Output: {output}
    question answering, visual dialogue  Question: {question} Answer: {answer}
    HatefulMemes                         is an image with written: "{meme_text}" on it.
                                         Is it hateful? Answer: {answer}
    RareAct                              Caption: a person {verb + object}

The setting is the same for all benchmarks; only HatefulMemes and RareAct have their own template.
Benchmarks that are not of the paper, and whose answers are the letters of listed options, have

    Question: {question} Context: {context} Options: (A) {option} (B) {option} Answer: {letter}
"""

from collections.abc import Sequence

LETTERS = "ABCDEFGH"

OUTPUT = "Output:"
ACTION = "Caption: a person"


def question(text: str) -> str:
    """Returns the prefix of an answer: "What is it?" -> "Question: What is it? Answer:"."""
    return f"Question: {' '.join(text.split())} Answer:"


def hateful_meme(text: str) -> str:
    """Returns the prefix of "yes" or "no", with the text that is written on the meme."""
    return f'is an image with written: "{" ".join(text.split())}" on it. Is it hateful? Answer:'


def options(text: str, choices: Sequence[str], context: str = "") -> str:
    """Returns the prefix of a letter, after a question with its options.

    Args:
        text: the question.
        choices: the options; the first is (A).
        context: a hint; "" leaves it out.
    """
    listed = " ".join(f"({letter}) {each}" for letter, each in zip(LETTERS, choices, strict=False))
    hint = f"Context: {context} " if context.strip() else ""
    return question(f"{text} {hint}Options: {listed}")
