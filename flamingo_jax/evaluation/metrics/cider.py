"""CIDEr-D (Vedantam et al., arXiv 1411.5726) as in the COCO caption evaluation.

The implementation follows pycocoevalcap, cider_scorer.py:

    weights of a caption  (count of each n-gram, n = 1..4) * idf of the n-gram
    idf                   log(images) - log(max(1, images with the n-gram in a reference))
    score of n            sum_g min(c_g, r_g) r_g / (|c| |r|) * penalty
    penalty               exp(-(difference of lengths)^2 / (2 * 6^2))
    CIDEr-D               10 * mean over n and references

The idf comes from the references of the queries that are evaluated. So a subset of a benchmark has
another value than the whole, and a single image has 0.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Mapping, Sequence

from flamingo_jax.evaluation.episode import Answer
from flamingo_jax.evaluation.metrics import ptb, required
from flamingo_jax.evaluation.metrics.declaration import Metric, Unit

_ORDERS = 4
_SIGMA = 6.0
Tokens = Sequence[str]
_Counts = Mapping[tuple[str, ...], int]


def _count(tokens: Tokens) -> _Counts:
    """Counts each n-gram."""
    return collections.Counter(
        tuple(tokens[start : start + n])
        for n in range(1, _ORDERS + 1)
        for start in range(len(tokens) - n + 1)
    )


class _Vector:
    """A caption as weighted n-grams.

    It has a vector and its norm for each n, and the length of the caption in bigrams, as the
    official code counts it.
    """

    def __init__(self, counts: _Counts, images_with: _Counts, log_images: float) -> None:
        self.weights: list[dict[tuple[str, ...], float]] = [{} for _ in range(_ORDERS)]
        for gram, count in counts.items():
            idf = log_images - math.log(max(1.0, images_with.get(gram, 0)))
            self.weights[len(gram) - 1][gram] = count * idf
        self.norms = [
            math.sqrt(sum(weight**2 for weight in vector.values())) for vector in self.weights
        ]
        self.length = sum(count for gram, count in counts.items() if len(gram) == 2)

    def similarity(self, reference: _Vector) -> float:
        """Returns the mean over n of the clipped cosine, times the penalty for lengths."""
        total = 0.0
        for mine, theirs, norm, other in zip(
            self.weights, reference.weights, self.norms, reference.norms, strict=True
        ):
            dot = sum(
                min(weight, theirs[gram]) * theirs[gram]
                for gram, weight in mine.items()
                if gram in theirs
            )
            total += dot / (norm * other) if norm and other else dot
        penalty = math.exp(-((self.length - reference.length) ** 2) / (2 * _SIGMA**2))
        return total / _ORDERS * penalty


def scores(candidates: Sequence[Tokens], references: Sequence[Sequence[Tokens]]) -> list[float]:
    """Returns CIDEr-D of each candidate, 0..10.

    Args:
        candidates: a tokenized caption for each image.
        references: tokenized references of each image, at least one.
    """
    counted = [[_count(reference) for reference in image] for image in references]
    images_with = collections.Counter(gram for image in counted for gram in set().union(*image))
    log_images = math.log(len(references))
    values = []
    for candidate, image in zip(candidates, counted, strict=True):
        vector = _Vector(_count(candidate), images_with, log_images)
        near = [vector.similarity(_Vector(counts, images_with, log_images)) for counts in image]
        values.append(10.0 * sum(near) / len(near))
    return values


def cider(answers: Sequence[Answer]) -> float:
    """Returns the mean CIDEr-D, 0..10; papers print 1.0 as 100.

    Raises:
        MissingResourceError, ValueError: as `of_each`.
    """
    return required.mean(of_each(answers), "cider")


def of_each(answers: Sequence[Answer]) -> list[float]:
    """Returns CIDEr-D of each answer, with the idf of the references of all answers.

    Reads `text`, and `references`: the captions as annotated.

    Raises:
        MissingResourceError: Java or the package pycocoevalcap is missing.
        ValueError: there are no answers, nothing was decoded, or references are missing.
    """
    texts = [required.decoded(each, "cider") for each in answers]
    references = [required.references(each, "cider") for each in answers]
    if not answers:
        raise ValueError("cider of no predictions is not defined: evaluate at least one episode.")
    all_references = [caption for captions in references for caption in captions]
    tokens = iter(ptb.tokenize([*texts, *all_references]))
    candidates = [next(tokens) for _ in texts]
    tokenized_references = [[next(tokens) for _ in captions] for captions in references]
    return scores(candidates, tokenized_references)


CIDER = Metric(
    name="cider",
    value=cider,
    needs="generation",
    unit=Unit("CIDEr-D x 100", of_each=False),
    check=ptb.check,
    caveat="CIDEr-D weighs words by the captions of the queries that are evaluated: numbers on a "
    "part of a test set are not comparable.",
)
