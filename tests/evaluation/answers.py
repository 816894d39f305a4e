"""Answers for tests of metrics and reports."""

from flamingo_jax.evaluation.episode import Answer, Episode


class _Unchecked(Episode):
    """An episode that does not check its right answer."""

    def __post_init__(self):
        pass


def answered(
    query_id,
    answer,
    text=None,
    candidates=(),
    scores=None,
    references=(),
    extra=None,
    *,
    task="task",
    shots=0,
    parts=(),
    **fields,
):
    """Returns an answer to a query with these annotations.

    Args:
        query_id: name of the query.
        answer: the right answer.
        text: the decoded text.
        candidates: possible answers.
        scores: of the candidates.
        references: right answers.
        extra: further annotations.
        task: name of the task.
        shots: number of support examples.
        parts: the prompt.
        **fields: further fields of the episode.
    """
    episode = _Unchecked(
        tuple(parts),
        tuple(candidates),
        answer,
        query_id,
        references=tuple(references),
        extra=extra or {},
        **fields,
    )
    return Answer(task, shots, episode, text, scores)
