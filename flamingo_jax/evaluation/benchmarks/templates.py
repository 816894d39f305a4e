"""The paper's prompt templates (Appendix B.1.5).

The text between an example's image and its answer.

    Output: {output}                                                                          all tasks without a question
    Question: {question} Answer: {answer}                                                     question answering, visual dialogue
    is an image with written: "{meme_text}" on it. Is it hateful? Answer: {answer}            HatefulMemes
    Caption: a person {verb + object}                                                         RareAct

One setting for all benchmarks; HatefulMemes and RareAct alone have a prompt of their own.
"""

OUTPUT = "Output:"
ACTION = "Caption: a person"


def question(text: str) -> str:
    """The prefix of a question's answer: "What is it?" -> "Question: What is it? Answer:"."""
    return f"Question: {' '.join(text.split())} Answer:"


def hateful_meme(text: str) -> str:
    """The prefix of yes or no, with the text that is written on the meme.

    The only benchmark whose prompt holds such text.
    """
    return f'is an image with written: "{" ".join(text.split())}" on it. Is it hateful? Answer:'
