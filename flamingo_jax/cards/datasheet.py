"""DATASHEET.md of a dataset, with the sections of the paper's datasheets (Appendix F).

    dataset_info.json    records and splits
    report.json          what the pipeline read, wrote and left out
    pipeline.json        the pipeline and its options; of the dataset, or of the folder above

The paper follows the datasheets of Gebru et al. (2021); the questions here are in short words. What
these files do not say is left to a person.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flamingo_jax.cards.sections import UNKNOWN, Sections, render
from flamingo_jax.core.paths import Path, PathError, PathLike, read_json
from flamingo_jax.core.version import __version__
from flamingo_jax.data.files import DATASHEET
from flamingo_jax.data.sources import Source

SECTIONS: Sections = (
    ("Motivation", ("Purpose", "Creators", "Funding", "Other Comments on the Motivation")),
    (
        "Composition",
        (
            "What the Instances Represent",
            "Number of Instances",
            "All Possible Instances or a Sample",
            "Data of Each Instance",
            "Labels or Targets",
            "Missing Information",
            "Relationships between Instances",
            "Recommended Splits",
            "Errors, Noise and Redundancies",
            "Self-Contained or Linked to External Resources",
            "Confidential Data",
            "Offensive Data",
        ),
    ),
    (
        "Collection Process",
        (
            "How the Data Were Acquired",
            "Sampling Strategy",
            "Who Collected the Data",
            "Time Frame",
            "Ethical Review",
        ),
    ),
    (
        "Preprocessing, Cleaning and Labeling",
        ("What Was Done", "What Was Left Out", "Software"),
    ),
    (
        "Uses",
        (
            "Uses so Far",
            "Other Possible Uses",
            "Properties that Limit Future Uses",
            "Uses to Avoid",
        ),
    ),
    ("Distribution", ("Third Parties", "Licence")),
    ("Maintenance", ("Maintainers", "Updates and Corrections")),
)
_INSTANCES = {
    "interleaved_page": "Documents of interleaved texts and images, such as web pages.",
    "image_text": "Pairs of an image and a text.",
    "video_text": "Pairs of a video and a text.",
    "image_answers": "Questions about an image, with the right answers.",
    "video_answers": "Questions about a video, with the right answers.",
    "conversation": "Dialogues about images.",
    "document": "Texts.",
}
_FIELDS = {
    "interleaved_page": "Texts (UTF-8) and encoded images in their order, and metadata as JSON.",
    "image_text": "An encoded image, a text (UTF-8), and metadata as JSON.",
    "video_text": "The frames of a video or its file, a text (UTF-8), and metadata as JSON.",
    "image_answers": "An encoded image, prompts and answers (UTF-8), and metadata as JSON.",
    "video_answers": "The frames of a video or its file, prompts and answers (UTF-8), and metadata "
    "as JSON.",
    "conversation": "Texts (UTF-8) and encoded images in their order, which of the texts are "
    "answers, and metadata as JSON.",
    "document": "A text (UTF-8), and metadata as JSON.",
}
_TEXT = "The text is the target: a model learns to predict it."
_ANSWERS = "The answers are the targets; what is asked is too, unless loss_on is 'answers'."
_TARGETS = {
    "image_answers": f"{_ANSWERS} Of several answers, training draws one at each visit.",
    "video_answers": f"{_ANSWERS} Of several answers, training draws one at each visit.",
    "conversation": _ANSWERS,
}
_FILTER = "explicit_filter"


def datasheet(dataset: PathLike) -> tuple[Path, str]:
    """Returns (path of the datasheet, its text).

    Args:
        dataset: directory with dataset_info.json.

    Raises:
        FileNotFoundError: there is no dataset, or one of its files is missing.
        BrokenDataset: its metadata are damaged.
        PathError: report.json or pipeline.json is damaged.
    """
    place = Path(dataset)
    splits = _splits(place)
    kind = Source(place, next(iter(splits))).kind
    report = _object(place / "report.json")
    made = _object(place / "pipeline.json") or _object(place.parent / "pipeline.json")
    request = made.get("request")
    request = request if isinstance(request, dict) else {}
    answers = {
        "What the Instances Represent": _INSTANCES.get(kind, kind),
        "Number of Instances": "\n".join(
            f"- {name}: {count:,} record{'s' * (count != 1)}, {size:,} bytes"
            for name, (count, size) in splits.items()
        ),
        "Data of Each Instance": _FIELDS.get(kind, kind),
        "Labels or Targets": _TARGETS.get(kind, _TEXT),
        "Recommended Splits": ", ".join(splits),
        "Self-Contained or Linked to External Resources": "Texts, images and videos are stored in "
        "the records.",
        "Software": f"data_pipelines of flamingo_jax {__version__}" if made else UNKNOWN,
        "What Was Done": _options(request),
        **_of_report(report),
        **_of_pipeline(made, request),
    }
    about = (
        f"A dataset of kind {kind}. Sections as in the datasheets of Flamingo's datasets (arXiv "
        "2204.14198, Appendix F), which follow Gebru et al. (arXiv 1803.09010)."
    )
    name = place.name or str(place)
    return place / DATASHEET, render(f"Datasheet: {name}", about, SECTIONS, answers)


def _splits(place: Path) -> dict[str, tuple[int, int]]:
    """Returns {split: (records, bytes before compression)}."""
    file = place / "dataset_info.json"
    if not file.exists():
        raise FileNotFoundError(
            f"There is no dataset at {place}: dataset_info.json is missing. Check the path."
        )
    try:
        found = {
            str(split["name"]): (sum(map(int, split["shardLengths"])), int(split["numBytes"]))
            for split in _object(file)["splits"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise PathError(f"{file} is damaged: it does not list its splits ({error!r}).") from error
    if not found:
        raise PathError(f"{file} is damaged: it has no splits.")
    return found


def _object(file: Path) -> Mapping[str, Any]:
    """Returns the content of a JSON file; {} if there is none."""
    if not file.exists():
        return {}
    found = read_json(file)
    if not isinstance(found, dict):
        raise PathError(f"{file} is damaged: expected an object.")
    return found


def _counts(report: Mapping[str, Any], name: str) -> dict[str, int]:
    found = report.get(name)
    items = found.items() if isinstance(found, dict) else ()
    return {reason: count for reason, count in items if isinstance(count, int)}


def _of_report(report: Mapping[str, Any]) -> dict[str, str]:
    """Returns the answers that report.json gives."""
    if not report:
        return {}
    read, rejected = report.get("in"), _counts(report, "rejected")
    images = _counts(report, "images_rejected")
    duplicates = {reason: n for reason, n in rejected.items() if reason.startswith("duplicate")}
    written = sum(_counts(report, "out").values())
    left_out = [f"- {reason}: {count:,} records" for reason, count in rejected.items()]
    left_out += [
        f"- {reason}: {count:,} images of records that were kept"
        for reason, count in images.items()
    ]
    noise = [f"Damaged records of the input, which were left out: {report.get('damaged', 0)}."]
    noise += [f"Left out as {reason}: {count:,}." for reason, count in duplicates.items()]
    return {
        "All Possible Instances or a Sample": f"{written:,} of the {read:,} records of the input."
        if isinstance(read, int)
        else UNKNOWN,
        "Missing Information": f"{sum(images.values()):,} images were left out of records that "
        "were kept.",
        "Errors, Noise and Redundancies": " ".join([*noise, f"Others: {UNKNOWN}"]),
        "What Was Left Out": "\n".join(left_out) or "Nothing.",
    }


def _of_pipeline(made: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, str]:
    """Returns the answers that pipeline.json gives."""
    if not made:
        return {}
    name, source = made.get("pipeline"), request.get("input")
    acquired = f"python -m data_pipelines.run --pipeline={name}"
    if name == "world":
        acquired += ": made up by a program; nothing was collected."
    elif source:
        acquired += f", from {source}. Who made these files, and how: {UNKNOWN}"
    answers = {"How the Data Were Acquired": acquired}
    if _FILTER in request:
        used = request[_FILTER]
        answers["Offensive Data"] = (
            f"Filtered by --{_FILTER}={used}. What is left: {UNKNOWN}"
            if used
            else f"No filter for explicit content was applied. What is there: {UNKNOWN}"
        )
    return answers


def _options(request: Mapping[str, Any]) -> str:
    shown = [
        f"- {name}: {value}"
        for name, value in request.items()
        if name not in ("files", "input") and value not in ("", None)
    ]
    return "\n".join(shown) or UNKNOWN
