"""Finds the language of a page.

The quality filter has stop words of English only.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection
from typing import Any

from data_pipelines.page import Page, Reject

_LONGEST = 2_000  # characters that are classified; more do not change the answer


def of_language(
    page: Page, languages: Collection[str], min_probability: float = 0.5
) -> Page | Reject:
    """Keeps pages in some languages.

    The language that a page states is ignored: templates state "en" for pages in any language.

    Args:
      page: its text is classified.
      languages: ISO 639-1 codes; empty: all languages.
      min_probability: of the most likely language.

    Returns:
      The page with the language that was found, or a Reject for "language".

    Raises:
      ValueError: the classifier does not know a language.
    """
    if not languages:
        return page
    check_languages(languages)
    found, probability = _classifier().classify(page.text[:_LONGEST])
    if found not in languages or probability < min_probability:
        return Reject("language", f"{page.url} is {found} with probability {probability:.2f}")
    return dataclasses.replace(page, language=found)


def check_languages(languages: Collection[str]) -> None:
    """Raises ValueError if the classifier does not know one of the languages."""
    unknown = sorted(set(languages) - _labels())
    if unknown:
        raise ValueError(
            f"Unknown languages {', '.join(unknown)}: expected ISO 639-1 codes of "
            f"{', '.join(sorted(_labels()))}."
        )


@functools.cache
def _classifier() -> Any:
    """Loads the model, once in each process."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


@functools.cache
def _labels() -> frozenset[str]:
    return frozenset(_classifier().labels)
