"""Mean weighted average precision (mWAP) of RareAct.

The implementation follows the official script (antoine77340/RareAct, compute_score.py). For each
action (a verb and a noun), the clips are ranked by the score of the action. The average precision
of the clips that show the action is weighted, so that each video counts once, however many of its
clips are in a list. The annotation of a clip, about its own verb and noun, decides its role:

    0        neither verb nor noun  negative of its own action
    1        the action             positive of its own action; hard negative of actions that share
                                    the verb or the noun; negative of all other actions
    2, 3, 4  verb, noun, or both    hard negative of its own action
             without the action

The mean is over the actions with at least one positive clip. Negatives and hard negatives differ
only in weight: the clips of a video are counted in each list separately.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flamingo_jax.core.finite import finite
from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit


def average_precision(scores: np.ndarray, positive: np.ndarray, weights: np.ndarray) -> float:
    """Returns the sum of weighted precision times increase of recall, from the highest score down.

    Args:
        scores: float[n]; clips of equal score are taken together.
        positive: bool[n], at least one is True.
        weights: float[n], above 0.
    """
    order = np.argsort(-scores, kind="stable")
    scores, positive, weights = scores[order], positive[order], weights[order]
    last_of_equals = np.append(scores[1:] != scores[:-1], [True])
    found = np.cumsum(weights * positive)[last_of_equals]
    seen = np.cumsum(weights)[last_of_equals]
    return float((found / seen) @ np.diff(found, prepend=0.0) / found[-1])


def _one_per_video(videos: np.ndarray) -> np.ndarray:
    """Returns float[n]: for each clip, 1 / (clips of its video in this list)."""
    _, group, sizes = np.unique(videos, return_inverse=True, return_counts=True)
    return 1 / sizes[group]


def mean_average_precision(
    scores: np.ndarray,
    verbs: np.ndarray,
    nouns: np.ndarray,
    annotations: np.ndarray,
    videos: np.ndarray,
    classes: np.ndarray,
) -> float:
    """Returns the mWAP, 0..1.

    Args:
        scores: float[clips, actions].
        verbs, nouns: str[clips], the clip's own action.
        annotations: int[clips], 0..4.
        videos: str[clips].
        classes: int[clips], the column of the clip's own action in `scores`.

    Raises:
        ValueError: no clip is annotated with 1.
        NonFiniteError: a score is NaN or infinite.
    """
    finite(scores, "scores of actions")
    shown = annotations == 1
    values = []
    for action in sorted(set(zip(verbs[shown], nouns[shown], strict=True))):
        same_verb, same_noun = verbs == action[0], nouns == action[1]
        own = same_verb & same_noun
        lists = (
            own & shown,
            (own & (annotations == 0)) | (shown & ~same_verb & ~same_noun),
            (own & (annotations > 1)) | (shown & (same_verb ^ same_noun)),
        )
        clips = np.concatenate([np.flatnonzero(each) for each in lists])
        weights = np.concatenate([_one_per_video(videos[each]) for each in lists])
        column = classes[np.flatnonzero(own)[-1]]
        values.append(average_precision(scores[clips, column], lists[0][clips], weights))
    if not values:
        raise ValueError(
            "rareact_mwap is not defined when no clip is annotated with 1: evaluate all rows of "
            "rareact.csv."
        )
    return float(np.mean(values))


def rareact_mwap(answers: Sequence[Answer]) -> float:
    """Returns the mWAP of one answer for each row of rareact.csv, 0..1.

    Reads `scores` (of candidates that are the actions in the order of their class), and `extra`:
    "verb", "noun", "class" (class_id), "annotation", "video".

    Raises:
        ValueError: there are no answers, they were not scored, they differ in the number of
            candidates, keys are missing, or nothing is positive.
    """
    if not answers:
        raise ValueError(
            "rareact_mwap of no predictions is not defined: evaluate all rows of rareact.csv."
        )
    rows = [required.scored(each, "rareact_mwap") for each in answers]
    keys = ("verb", "noun", "annotation", "video", "class")
    columns = [
        np.asarray([required.extra(each, "rareact_mwap", key) for each in answers]) for key in keys
    ]
    widths = {len(row) for row in rows}
    if len(widths) != 1 or not 0 <= columns[4].min() <= columns[4].max() < min(widths):
        raise ValueError(
            "rareact_mwap: expected the same candidates for all clips, one for each class; got "
            f"{sorted(widths)} candidates and classes {columns[4].min()}..{columns[4].max()}. "
            "Check the task."
        )
    verbs, nouns, annotations, videos, classes = columns
    return mean_average_precision(
        np.asarray(rows, np.float64), verbs, nouns, annotations, videos, classes
    )


RAREACT_MWAP = Metric(
    name="rareact_mwap",
    value=rareact_mwap,
    needs="scores",
    unit=Unit("mWAP, %", of_each=False),
)
