"""The page of predictions.

Whole prompts, what was answered, and that a browser shows it from one file.
"""

import base64
import dataclasses
import functools
import io
import re

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.core.html_page import embedded, environment
from flamingo_jax.evaluation.episode import Row
from flamingo_jax.evaluation.report.prediction_page import render, verdicts
from flamingo_jax.inference.prompt import load_frames
from tests import chromium
from tests.evaluation.answers import answered
from tests.html_elements import Elements

INJECTION = '<script>document.title="taken"</script><img src=x onerror=alert(1)> & "quoted"'
RED, GREEN, BLUE = (200, 40, 40), (40, 200, 40), (40, 40, 200)


def picture(colour, side=64):
    return np.full((side, side, 3), colour, np.uint8)


def row(task, shots, metric, value=0.5):
    return Row(task, "test", shots, metric, value, 200, 1, "random", 1, "greedy", "runs/x", 700)


def sample(task, parts, said, **fields):
    shots = sum(isinstance(part, np.ndarray) for part in parts) - 1
    episode = dataclasses.replace(said.episode, parts=tuple(parts), **fields)
    return dataclasses.replace(said, task=task, shots=shots, episode=episode)


def page(samples, rows=(), side=64):
    return Elements.of(render(samples, rows, functools.partial(load_frames, image_size=side)))


def pixels(attributes):
    kind, data = re.fullmatch(r"data:image/(png|jpeg);base64,(.*)", attributes["src"]).groups()
    return kind, np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(data))))


def captioning():
    parts = [
        picture(RED),
        "Output: A red one.<EOC>",
        picture(GREEN),
        "Output: A green one.<EOC>",
        picture(BLUE),
        "Output:",
    ]
    text = " A blue one. Output: A red"
    said = answered(
        "coco/7",
        "Blue.",
        text,
        references=("Blue.", "All blue.", "Blue."),
        extra={"image_id": 7},
    )
    return sample("coco", parts, said)


def test_the_whole_prompt_is_in_reading_order():
    shown = page([captioning()])
    assert [pixels(attributes)[1][0, 0].tolist() for attributes, _ in shown.all("img")] == [
        [*RED],
        [*GREEN],
        [*BLUE],
    ]
    assert [attributes["alt"] for attributes, _ in shown.all("img")] == [
        "support 1, frame 1", "support 2, frame 1", "query, frame 1",
    ]  # fmt: skip
    texts = [text for _, text in shown.all("p") if text.startswith("Output:")]
    assert texts == ["Output: A red one.", "Output: A green one.", "Output:"]
    assert [text for _, text in shown.all("span", "token")] == ["<EOC>"] * 2
    assert len(shown.all("li", "query")) == 1
    assert shown.found.index(("li", {"class": "query"}, "")) > shown.found.index(
        ("li", {"class": ""}, "")
    )


def test_the_answer_is_trimmed_and_repeated_references_are_counted():
    shown = page([captioning()])
    assert shown.all("span", "answer")[0][1] == "A blue one."
    assert shown.all("span", "cut")[0][1] == "Output: A red"
    assert shown.all("dd")[-1][1] == "Blue. (x 2) / All blue."
    assert "image_id 7" in [text for _, text in shown.all("span")]


def test_text_only_examples_are_cards_without_images():
    parts = ["Output: A cat.<EOC>Output: A dog.<EOC>", picture(RED), "Output:"]
    shown = page([sample("coco", parts, answered("q", "A.", ""))])
    assert len(shown.all("li")) == 3 and len(shown.all("img")) == 1
    assert shown.all("span", "answer")[0][1] == "(nothing)"


def test_many_supports_are_folded_but_there():
    parts = [part for _ in range(9) for part in (picture(RED), "Output: Red.<EOC>")]
    shown = page([sample("coco", [*parts, picture(BLUE), "Output:"], answered("q", "A.", "B."))])
    assert shown.all("summary")[0][1] == "9 support examples"
    assert len(shown.all("img")) == 10


def test_frames_of_videos():
    """3 frames of the support, 10 of the query, evenly spread, and the number of all frames."""
    video = np.stack([picture((8 * k, 0, 0)) for k in range(30)])
    parts = [video, "Output: It goes on.<EOC>", video[:5], "Output:"]
    shown = page([sample("vatex", parts, answered("q", "A.", "B."))])
    reds = [pixels(attributes)[1][0, 0, 0] for attributes, _ in shown.all("img")]
    assert reds == [0, 8 * 14, 8 * 29, 0, 8, 16, 24, 32]
    assert [text for _, text in shown.all("span", "note")] == ["3 of 30 frames", "5 of 5 frames"]


def test_large_images_are_made_smaller_and_small_ones_are_exact():
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    parts = [noise, "Output: A.<EOC>", noise, "Output:"]
    for side, sizes in ((64, [("png", 64), ("png", 64)]), (320, [("jpeg", 112), ("jpeg", 160)])):
        shown = page([sample("coco", parts, answered("q", "A.", "B."))], side=side)
        found = [pixels(attributes) for attributes, _ in shown.all("img")]
        assert [(kind, len(image)) for kind, image in found] == sizes
        assert ("small" in (shown.all("img")[0][0].get("class") or "")) == (side == 64)
        if side == 64:
            np.testing.assert_array_equal(found[0][1], noise)


def test_bars_are_shares_of_the_probability():
    scores = tuple(np.log([0.1, 0.6, 0.3]).tolist())
    said = answered("q", "no", None, ("maybe", "yes", "no"), scores)
    shown = page(
        [sample("star", [picture(RED), "Is it? Answer:"], said)], [row("star", 0, "ranking")]
    )
    assert [text for _, text in shown.all("td")][5::5] == ["yes", "no", "maybe"]
    assert [a["style"] for a, _ in shown.all("div") if "style" in a] == [
        "width: 60.0%",
        "width: 30.0%",
        "width: 10.0%",
    ]
    assert [attributes["class"] for attributes, _ in shown.all("tr")[1:]] == [
        "first",
        "is_answer",
        "",
    ]
    assert shown.all("span", "answer")[0][1] == "yes"
    assert shown.all("span", "wrong")[0][1] == "top-1 accuracy ✗"


def test_of_many_candidates_the_best_and_the_right_one():
    names = tuple(f"class {k}" for k in range(1000))
    said = answered("q", "class 900", None, names, tuple(-float(k) for k in range(1000)))
    shown = page([sample("imagenet", [picture(RED), "Output:"], said)])
    texts = [text for _, text in shown.all("td")][5::5]
    assert texts == [*names[:12], "class 900"]
    assert [text for _, text in shown.all("td", "number")][-1] == "901."
    assert "and 987 more candidates" in [text for _, text in shown.all("p", "note")]


def test_scores_that_are_not_finite():
    said = answered("q", "a", None, ("a", "b"), (-float("inf"), float("nan")))
    shown = page([sample("star", [picture(RED), "Output:"], said)])
    assert [a["style"] for a, _ in shown.all("div") if "style" in a] == ["width: 0.0%"] * 2


def test_marks_and_results():
    right = answered("q", "dax", "dax", ("dax", "wug"), (-0.1, -3.0))
    rows = [
        row("bind2", 0, "exact_match", 0.25),
        row("bind2", 0, "ranking", 0.75),
        row("bind2", 0, "nll", 1.5),
    ]
    shown = page([sample("bind2", [picture(RED), "this is a"], right, masked=True)], rows)
    assert [text for _, text in shown.all("span", "right")] == ["exact match ✓", "ranking ✓"]
    assert shown.all("div", "hidden")
    assert shown.all("h2")[0][1].strip() == "bind2, 0 shots"
    assert "exact match: 0.25; ranking: 0.75; nll: 1.50 over 200 queries" in [
        text for _, text in shown.all("span")
    ]
    partly = answered("q", "cake", "cake", references=("cake", "cake", *["pie"] * 8))
    (mark,) = page(
        [sample("vqav2", [picture(RED), "Q"], partly)], [row("vqav2", 0, "vqa_accuracy")]
    ).all("span", "partly")
    assert mark[1] == "VQA accuracy 0.60"


def test_verdicts_are_of_metrics_with_a_value_for_each_answer():
    said = answered("q", "yes", "yes", ("yes", "no"), (-1.0, -2.0), extra={"positive": "yes"})
    of = functools.partial(dataclasses.replace, said)
    assert verdicts(of(task="hateful_memes"), ["roc_auc"]) == {}
    assert verdicts(of(task="coco"), ["cider", "exact_match"]) == {"exact_match": 1.0}
    assert verdicts(of(task="lm_lookup"), ["ranking", "nll"]) == {"ranking": 1.0}


def test_hidden_answers_have_no_mark():
    shown = page(
        [
            sample(
                "vqav2",
                [picture(RED), "Q"],
                answered("q", "", "cake", extra={"question_id": 3}),
            )
        ]
    )
    assert shown.all("dd")[-1][1] == "not known"
    assert any("the right answers are not known" in text for _, text in shown.all("span"))
    assert not shown.all("span", "right") and not shown.all("span", "wrong")


def test_an_ensemble_says_so():
    parts = (picture(RED), "Output:")
    said = answered("q", "a", None, ("a", "b"), (-1.0, -2.0))
    shown = page([sample("star", parts, said, orders=(parts,) * 5)])
    assert "scores are means over 6 orders" in [text for _, text in shown.all("span")]


def test_nothing_of_a_text_becomes_html():
    hostile = answered(
        INJECTION,
        INJECTION,
        INJECTION,
        (INJECTION, "b"),
        (-1.0, -2.0),
        (INJECTION,),
        {INJECTION: INJECTION},
    )
    shown = page(
        [sample("coco", [f"{INJECTION}<EOC>", picture(RED), INJECTION], hostile)],
        [row("coco", 0, "exact_match")],
    )
    assert "script" not in {tag for tag, _, _ in shown.found}
    assert len(shown.all("img")) == 1
    assert [text for _, text in shown.all("p")][1:] == [INJECTION, INJECTION]
    assert shown.all("span", "answer")[0][1] == INJECTION
    assert all(attributes["src"].startswith("data:image/") for attributes, _ in shown.all("img"))
    assert (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
        in shown.all("meta")[1][0]["content"]
    )
    assert (
        environment().from_string("{{ text }}").render(text="a\0\n\ud800<")
        == "a\\x00↵\n\\ud800&lt;"
    )


def test_a_page_is_written_as_utf8():
    said = answered("\ud800", "Straße 猫", "\ud83d", references=("\udc80",))
    assert render(
        [sample("coco", [picture(RED), "\ud800"], said)], [], lambda visual: visual[None]
    ).encode()


@pytest.mark.parametrize("side", [8, 65])
def test_an_embedded_image_is_the_image(side):
    kind, image = pixels({"src": embedded(picture(RED, side))})
    assert kind == ("png" if side == 8 else "jpeg")
    assert np.abs(image.astype(int) - RED).max() <= (0 if side == 8 else 3)


def test_a_browser_shows_it(tmp_path):
    """In headless Chromium, under the page's own policy.

    All images, the framed query, the bars, and the marks.
    """
    scores = tuple(np.log([0.75, 0.25]).tolist())
    ranked = answered("star/1", "no", None, ("yes", "no"), scores)
    shown = [captioning(), sample("star", [picture(RED), "Question: Is it? Answer:"], ranked)]
    file = tmp_path / "predictions.html"
    html = render(shown, [row("star", 0, "ranking")], functools.partial(load_frames, image_size=64))
    file.write_text(html)
    drawn = chromium.screenshot(file, tmp_path, width=1200, height=1200)
    for colour, area in ((RED, 112**2 + 160**2), (GREEN, 112**2), (BLUE, 160**2)):
        found = (drawn == colour).all(axis=-1).sum()
        assert area * 0.98 <= found <= area, colour  # the corners are round
    right_bar, wrong_bar = (
        (drawn == colour).all(axis=-1) for colour in ((0x2E, 0x7D, 0x4F), (0xA3, 0xB2, 0xBF))
    )
    assert wrong_bar.any(axis=0).sum() == pytest.approx(3 * right_bar.any(axis=0).sum(), rel=0.15)
    # In a copy that allows scripts, a script writes sizes that only the browser knows.
    script = """<script>onload = () => {
        for (const image of document.images)
            image.dataset.natural = image.naturalWidth + "x" + image.naturalHeight;
        for (const part of document.querySelectorAll("section"))
            part.dataset.width = part.scrollWidth - part.clientWidth;
    }</script>"""
    copy = tmp_path / "copy.html"
    copy.write_text(re.sub('<meta http-equiv="Content-Security-Policy"[^>]*>', script, html))
    dom = Elements.of(chromium.dump_dom(copy, tmp_path))
    assert [attributes["data-natural"] for attributes, _ in dom.all("img")] == ["64x64"] * 4
    # nothing sticks out
    assert [attributes["data-width"] for attributes, _ in dom.all("section")] == ["0", "0"]
    targets = {attributes["id"] for attributes, _ in dom.all("section")}
    assert {attributes["href"].removeprefix("#") for attributes, _ in dom.all("a")} == targets
