"""The paper's prompt templates: the text between an example's image and its answer (paper, B.1.5).

    all tasks without a question         Output: {output}
    question answering, visual dialogue  Question: {question} Answer: {answer}
    HatefulMemes                         is an image with written: "{meme_text}" on it.
                                         Is it hateful? Answer: {answer}
    RareAct                              Caption: a person {verb + object}

The setting is the same for all benchmarks; only HatefulMemes and RareAct have their own template.
"""

OUTPUT = "Output:"
ACTION = "Caption: a person"


def question(text: str) -> str:
    """Returns the prefix of an answer: "What is it?" -> "Question: What is it? Answer:"."""
    return f"Question: {' '.join(text.split())} Answer:"


def hateful_meme(text: str) -> str:
    """Returns the prefix of "yes" or "no", with the text that is written on the meme."""
    return f'is an image with written: "{" ".join(text.split())}" on it. Is it hateful? Answer:'
