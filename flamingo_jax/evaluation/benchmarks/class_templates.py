"""Sentences around the name of a class, for prompt ensembling (paper, B.1.3, after CLIP).

    "tench" --each template--> "A photo of a tench.", "A drawing of a tench.", ...
            --text encoder, length 1--> an embedding each
            --mean, length 1--> the embedding of the class

The paper gives "A photo of a {class_name}" and leaves the other templates open: the others here
are our choice. `config.templates` names a file of other templates, one per line.
"""

from __future__ import annotations

from collections.abc import Sequence

from flamingo_jax.core.paths import PathLike, regular
from flamingo_jax.evaluation.task import TaskError

NAME = "{class_name}"  # replaced by the name of a class, like "{}"

IMAGES = (
    "A photo of a {}.",
    "A photo of the {}.",
    "A photo of one {} among others.",
    "A picture that shows a {}.",
    "A close view of a {}.",
    "A {} seen from far away.",
    "Part of a {}, near the camera.",
    "A small {} in a wide scene.",
    "A blurred picture of a {}.",
    "A dark picture of a {}.",
    "A bright picture of a {}.",
    "A black and white picture of a {}.",
    "A drawing of a {}.",
    "A toy that looks like a {}.",
    "A {}, outdoors.",
    "A {}, indoors.",
)
VIDEOS = (
    "A photo of {}.",
    "A photo of a person {}.",
    "A video of {}.",
    "A video of a person {}.",
    "People {}.",
    "Somebody who is {}.",
    "An example of {}.",
    "How {} looks.",
)


def read(path: PathLike) -> tuple[str, ...]:
    """Reads a file of templates: a sentence per line, with {} or {class_name} for the name.

    Skips empty lines.

    Raises:
        TaskError: the file is missing or no text, or a line does not have exactly one place for
            the name.
    """
    try:
        lines = regular(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"config.templates={path} cannot be read ({error}). Give a text file, a template per "
            "line."
        ) from error
    found = tuple(line.strip().replace(NAME, "{}") for line in lines if line.strip())
    for number, template in enumerate(found, 1):
        if template.count("{}") != 1:
            raise TaskError(
                f"config.templates={path}: template {number}, {template!r}, has "
                f"{template.count('{}')} places for the name of a class; expected one, as in 'A "
                f"photo of a {NAME}.'"
            )
    if not found:
        raise TaskError(
            f"config.templates={path} holds no template; expected one per line, such as 'A photo "
            f"of a {NAME}.'"
        )
    return found


def fill(templates: Sequence[str], name: str) -> list[str]:
    """Returns each template with the name filled in."""
    return [template.replace("{}", name) for template in templates]
