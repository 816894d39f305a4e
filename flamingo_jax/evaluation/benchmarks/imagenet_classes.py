"""The names of ImageNet's classes, and the class of each validation image.

The id of a class is its WordNet id, such as "n01440764", which is also the name of its folder.
Classes are in the order of the ids. The names are in one of these files:

    classes.txt               a name per line, in the order of the ids: for names of your own
                              choice, since prompts depend on them
    LOC_synset_mapping.txt    "n01440764 tench, Tinca tinca" per line (Kaggle)
    ILSVRC2012_devkit_t12/data/meta.mat    of the official development kit

Of several synonyms the first is taken. Where two classes have the same first synonym, as many as
differ ("maillot"; "maillot, tank suit"). Two classes are called "crane", the bird and the machine,
in all official files: both count as one answer, unless classes.txt has different names for them.
"""

from __future__ import annotations

import collections
import io
from collections.abc import Mapping, Sequence

from flamingo_jax.core.paths import Path, regular
from flamingo_jax.evaluation.benchmarks.annotations import Files, one_line

MAPPING = ("LOC_synset_mapping.txt", "ILSVRC/LOC_synset_mapping.txt")
SOLUTION = ("LOC_val_solution.csv", "ILSVRC/LOC_val_solution.csv")
DEVKIT = "ILSVRC2012_devkit_t12/data"
# the first thousand synsets of the development kit; the others are groups of classes
NUM_CLASSES = 1000


def names(files: Files, ids: Sequence[str]) -> dict[str, str]:
    """Reads the names of the classes: {WordNet id: name}.

    Args:
        files: the benchmark's directory.
        ids: sorted WordNet ids of the classes.

    Raises:
        AnnotationError: no file has the names, or the file has other classes.
    """
    if files.has("classes.txt"):
        lines = [one_line(line) for line in files.text("classes.txt").splitlines() if line.strip()]
        if len(lines) != len(ids):
            raise files.wrong(
                files.path("classes.txt"),
                f"{len(lines)} names",
                f"{len(ids)}, one per class in the order of their ids",
            )
        return dict(zip(ids, lines, strict=True))
    synonyms, path = _synonyms(files)
    if lacking := [id for id in ids if id not in synonyms]:
        raise files.wrong(
            path, f"no name of {len(lacking)} classes ({lacking[0]})", "the names of all classes"
        )
    return _shortest({id: synonyms[id] for id in ids})


def validation_classes(files: Files) -> dict[str, str]:
    """Reads {"ILSVRC2012_val_00000001.JPEG": WordNet id} of the validation images.

    Needed where the images are not in a folder per class.

    Raises:
        AnnotationError: Kaggle's LOC_val_solution.csv and the development kit are both missing, or
            damaged.
    """
    if any(files.has(name) for name in SOLUTION):
        rows = files.csv(*SOLUTION, columns=("ImageId", "PredictionString"))
        files.check_ids(files.path(*SOLUTION), (row["ImageId"] for row in rows))
        return {f"{row['ImageId']}.JPEG": row["PredictionString"].partition(" ")[0] for row in rows}
    truth = f"{DEVKIT}/ILSVRC2012_validation_ground_truth.txt"
    if not files.has(truth):
        raise files.missing(f"{truth} (or {SOLUTION[0]}, or val/ with a folder per class)")
    ids = _synsets(files)
    found = {}
    for number, line in enumerate(files.text(truth).split(), 1):
        if not line.isdecimal() or int(line) not in ids:
            raise files.wrong(
                files.path(truth), f"{line!r} in line {number}", f"a number from 1 to {len(ids)}"
            )
        found[f"ILSVRC2012_val_{number:08d}.JPEG"] = ids[int(line)][0]
    return found


def _synonyms(files: Files) -> tuple[dict[str, tuple[str, ...]], Path]:
    """Reads {WordNet id: synonyms}; returns them with their file."""
    if any(files.has(name) for name in MAPPING):
        rows = [line.partition(" ") for line in files.text(*MAPPING).splitlines() if line.strip()]
        return {id: _split(words) for id, _, words in rows}, files.path(*MAPPING)
    if files.has(f"{DEVKIT}/meta.mat"):
        found = {id: _split(words) for id, words in _synsets(files).values()}
        return found, files.path(f"{DEVKIT}/meta.mat")
    raise files.missing(
        f"{MAPPING[0]} (or {DEVKIT}/meta.mat, or classes.txt: a name per class, in the order of "
        "their ids)"
    )


def _split(words: str) -> tuple[str, ...]:
    return tuple(one_line(word) for word in words.split(","))


def _synsets(files: Files) -> dict[int, tuple[str, str]]:
    """Reads {number: (WordNet id, its words)} from the development kit."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    path = files.path(f"{DEVKIT}/meta.mat")
    try:
        synsets = loadmat(io.BytesIO(regular(path).read_bytes()), squeeze_me=True)["synsets"]
        found = {
            int(each["ILSVRC2012_ID"]): (str(each["WNID"]), str(each["words"])) for each in synsets
        }
    except (MatReadError, ValueError, KeyError, TypeError, IndexError, OSError) as error:
        raise files.wrong(
            path, f"what cannot be read as MATLAB's synsets ({error!r})", "the development kit's"
        ) from error
    return {number: each for number, each in found.items() if number <= NUM_CLASSES}


def _shortest(synonyms: Mapping[str, tuple[str, ...]]) -> dict[str, str]:
    """Returns the first synonym of each class; more where classes would have the same name."""
    counts = dict.fromkeys(synonyms, 1)
    while True:
        chosen = {id: ", ".join(words[: counts[id]]) for id, words in synonyms.items()}
        often = collections.Counter(chosen.values())
        longer = [
            id
            for id, words in synonyms.items()
            if often[chosen[id]] > 1 and counts[id] < len(words)
        ]
        if not longer:
            return chosen
        for id in longer:
            counts[id] += 1
