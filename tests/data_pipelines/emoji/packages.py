"""Writes packages like those of emoji on npm, with pictures that are drawn here."""

import json
import pathlib

from PIL import Image, ImageDraw

from data_pipelines.emoji.concepts import CATEGORIES, STYLES

SHAPES = ("rectangle", "ellipse", "line")


def row(code: str, name: str, category: str = "Objects", **fields: object) -> dict[str, object]:
    """Returns a row of emoji.json, with the fields that the pipeline reads and some more."""
    short = name.lower().replace(" ", "_")
    return {
        "name": name,
        "unified": code,
        "image": f"{code.lower()}.png",
        "short_name": short,
        "short_names": [short],
        "category": category,
        "subcategory": "other",
        "sort_order": 1,
        "has_img_google": True,
        **fields,
    }


def rows(number: int = 240) -> list[dict[str, object]]:
    """Returns rows of plain concepts, three genders of one, two of a family, and a skin tone."""
    categories = [name for name in CATEGORIES if name != "People & Body"]
    plain = [
        row(f"1F{index:03X}", f"THING NUMBER{index}", categories[index % len(categories)])
        for index in range(number)
    ]
    people = {"category": "People & Body"}
    return [
        *plain,
        row("1F9D1-200D-1F373", "COOK", **people),
        row("1F468-200D-1F373", "MAN COOK", **people),
        row("1F469-200D-1F373", "WOMAN COOK", **people),
        row("1F3C3", "RUNNER", **people),
        row("1F3C3-200D-2640-FE0F", "WOMAN RUNNING", **people),
        row("1F46A", "FAMILY", subcategory="family", **people),
        row("1F468-200D-1F466", "FAMILY: MAN, BOY", subcategory="family", **people),
        row("1F3FB", "EMOJI MODIFIER FITZPATRICK TYPE-1-2", "Component"),
    ]


def write(
    directory: pathlib.Path, emoji: list[dict[str, object]] | None = None, third: bool = False
) -> pathlib.Path:
    """Writes node_modules with a drawing of each emoji in both styles, which differ in colour."""
    emoji = rows() if emoji is None else emoji
    for shift, style in enumerate(STYLES):
        folder = directory / f"emoji-datasource-{style}"
        drawings = folder / "img" / style / "64"
        drawings.mkdir(parents=True)
        (folder / "package.json").write_text(json.dumps({"version": "16.0.0"}))
        (folder / "emoji.json").write_text(json.dumps(emoji))
        for index, each in enumerate(emoji):
            image = Image.new("RGBA", (64, 64))
            shape = getattr(ImageDraw.Draw(image), SHAPES[index % len(SHAPES)])
            colour = (index % 256, 40 * (index % 7), 200 * shift, 255)
            shape((8 + index % 5, 8, 56 - index % 11, 56), fill=colour)
            image.save(drawings / str(each["image"]))
    if third:
        svgs = directory / "openmoji" / "color" / "svg"
        svgs.mkdir(parents=True)
        (directory / "openmoji" / "package.json").write_text(json.dumps({"version": "17.0.0"}))
        for each in emoji:
            (svgs / f"{each['unified']}.svg").write_text(
                '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 72 72">'
                '<circle cx="36" cy="36" r="30" fill="#00ff00"/></svg>'
            )
    return directory
