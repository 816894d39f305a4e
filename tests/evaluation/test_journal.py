"""The journal: a stopped run goes on.

Prompts with an answer in the journal are not asked again; changed prompts are.
"""

import dataclasses
import io
import json
import os

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from etils import epath

from flamingo_jax.core.paths import PathError
from flamingo_jax.evaluation.episode import Episode
from flamingo_jax.evaluation.few_shot import FewShotTask
from flamingo_jax.evaluation.journal import Journal, prompt_hash
from flamingo_jax.evaluation.metrics.exact_match import EXACT_MATCH
from flamingo_jax.evaluation.metrics.ranking import RANKING
from flamingo_jax.evaluation.protocol import Protocol
from flamingo_jax.evaluation.runner import evaluate, evaluate_all
from flamingo_jax.inference.prompt import Deferred, Image, PromptError, Video
from flamingo_jax.inference.request import Reply
from tests.evaluation.in_memory import Colours
from tests.inference import tiny

ALL = Protocol(shots=(1,), n=0, seed=5, num_support=6)
FOUR = dataclasses.replace(ALL, n=4)
HEADER = {"model": "abc", "settings": {"beams": 3}}
EPISODE = Episode((b"an image", "this is a"), ("red", "blue"), "red", "query/1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.load(tmp_path_factory.getbasetemp())


@pytest.fixture
def asked(model, monkeypatch):
    """The number of prompts in each call of the engine, which is replaced.

    The replaced engine's answers depend on all prompts of a call.
    """
    counts = []

    def answer(requests, *, generate, batch_size):
        counts.append(len(requests))
        company = sum(int(request.prompt.tokens.sum()) for request in requests)
        for request in requests:
            own = int(np.dot(request.prompt.tokens, np.arange(len(request.prompt.tokens)))) + sum(
                int(image.sum()) for image in request.prompt.visuals
            )
            scores = tuple(
                -float(np.float32((own + company * len(c) + c[-1]) % 1009 / 7))
                for c in request.candidates
            )
            yield Reply((4 + own % 12,) if generate else None, 0.0, scores)

    monkeypatch.setattr(
        model.engine, "answer", lambda requests, **how: list(answer(requests, **how))
    )
    return counts


def outcome(result):
    """Returns rows, and answers in a form that can be compared."""
    rows, answers = result
    return rows, [answer.line() for answer in answers]


def test_answers_come_back(tmp_path):
    answers = [("a cat ü\n", None), (None, (-1.5, -0.25))]
    with_other_text = dataclasses.replace(EPISODE, parts=(b"an image", "that is a"))
    episodes = [EPISODE, with_other_text]
    Journal(tmp_path / "task-0.jsonl", HEADER).add(
        episodes, [prompt_hash(each) for each in episodes], answers
    )
    again = Journal(tmp_path / "task-0.jsonl", HEADER).finished
    assert [again[prompt_hash(each)] for each in episodes] == answers
    lines = [json.loads(line) for line in (tmp_path / "task-0.jsonl").read_text().splitlines()]
    assert lines[0] == HEADER and [line["query"] for line in lines[1:]] == ["query/1", "query/1"]


@pytest.mark.parametrize(
    "left",
    [b'{"query": "query/2", "prom', b'{"query": "query/2"}', b"\xff\xfe\x00\n", b"no JSON\n"],
)
def test_an_incomplete_last_line_is_dropped(tmp_path, left):
    file = tmp_path / "task-0.jsonl"
    Journal(file, HEADER).add([EPISODE], ["key"], [("red", None)])
    whole = file.read_bytes()
    file.write_bytes(whole + left)
    journal = Journal(file, HEADER)
    assert journal.finished == {"key": ("red", None)} and file.read_bytes() == whole
    journal.add([EPISODE], ["other"], [("blue", None)])
    assert set(Journal(file, HEADER).finished) == {"key", "other"}


@pytest.mark.parametrize("change", [{"model": "abd"}, {"settings": {"beams": 1}}])
def test_another_model_or_other_settings_begin_anew(tmp_path, change):
    file = tmp_path / "task-0.jsonl"
    Journal(file, HEADER).add([EPISODE], ["key"], [("red", None)])
    assert Journal(file, {**HEADER, **change}).finished == {}
    assert len(file.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"parts": (b"another image", "this is a")},
        {"parts": (b"an image", "this is  a")},
        {"candidates": ("red", "green")},
        {"query_id": "query/2"},
        {"masked": True},
        {"separator": " "},
        {"orders": ((b"an image", "this is a"),)},
    ],
)
def test_the_hash_depends_on_all_of_a_prompt(change):
    assert prompt_hash(dataclasses.replace(EPISODE, **change)) != prompt_hash(EPISODE)
    assert prompt_hash(dataclasses.replace(EPISODE)) == prompt_hash(EPISODE)


def test_segments_of_a_video_are_different_prompts(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(b"a film")
    prompts = [
        Episode((Video(file, start, end), "x"), (), "", "q")
        for start, end in ((0.0, 1.0), (0.0, 2.0), (1.0, 2.0))
    ]
    assert len(set(map(prompt_hash, prompts))) == 3
    of_image = Episode((Image(file), "x"), (), "", "q")
    assert prompt_hash(of_image) not in set(map(prompt_hash, prompts))


FORMS = {
    "file": Image,
    "path": epath.Path,
    "film": Video,
    "bytes": lambda file: file.read_bytes(),
    "record": lambda file: Deferred("record 7", file.read_bytes),
    "pil": lambda file: PIL.Image.open(io.BytesIO(file.read_bytes())),
}


@pytest.mark.parametrize("form", FORMS)
def test_answers_about_a_picture_that_was_replaced_are_asked_again(tmp_path, form):
    """Of the same name, size and time."""
    file = tmp_path / "frame.bmp"

    def episode(colour):
        PIL.Image.new("RGB", (8, 8), colour).save(file)
        os.utime(file, (12345, 12345))
        return Episode((FORMS[form](file), "this is a"), (), "red", "query/1")

    journal = Journal(tmp_path / "task-0.jsonl", HEADER)
    red = episode("red")
    journal.add([red], [prompt_hash(red)], [("red", None)])
    again = Journal(tmp_path / "task-0.jsonl", HEADER).finished
    assert prompt_hash(episode("red")) in again
    assert prompt_hash(episode("blue")) not in again


def test_a_picture_that_is_missing_is_an_error():
    with pytest.raises(PromptError, match="there is no image file"):
        prompt_hash(Episode((Image("nowhere.png"), "x"), (), "", "q"))


def test_a_stopped_run_goes_on_and_ends_as_if_it_had_not(model, asked, tmp_path):
    """The run is stopped after the first wave of prompts, in the middle of a line.

    Only the rest is asked, and all predictions are the same to the bit.
    """
    task = FewShotTask(Colours(metrics=(EXACT_MATCH, RANKING), num_test=11), ALL)
    how = {"shots": 2, "batch_size": 2}  # a wave is 4 batches
    whole = outcome(evaluate(model, task, **how))
    assert asked == [8, 3]
    evaluate(model, task, **how, journals=tmp_path)
    file = tmp_path / "colours-2.jsonl"
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:5])[:-7])
    asked.clear()
    resumed = outcome(evaluate(model, task, **how, journals=tmp_path))
    assert asked == [8, 3]  # 3 of the first 8 were in the file: all 8 are asked again
    assert resumed == whole
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[: 1 + 3 + 8]))
    asked.clear()
    resumed = outcome(evaluate(model, task, **how, journals=tmp_path))
    assert asked == [3]
    assert resumed == whole
    asked.clear()
    again = outcome(evaluate(model, task, **how, journals=tmp_path))
    assert again == whole and asked == []


def test_an_error_in_the_middle_loses_no_finished_query(model, asked, tmp_path, monkeypatch):
    task = FewShotTask(Colours(num_test=11), ALL)
    how = {"shots": 1, "batch_size": 1, "journals": tmp_path}
    answer = model.engine.answer

    def dying(requests, **settings):
        if len(asked) == 2:
            raise MemoryError("no room")
        return answer(requests, **settings)

    with monkeypatch.context() as patched:
        patched.setattr(model.engine, "answer", dying)
        with pytest.raises(MemoryError):
            evaluate(model, task, **how)
    assert asked == [4, 4]
    evaluate(model, task, **how)
    assert asked == [4, 4, 3]


class Terminal(io.StringIO):
    """A stream that says whether it is a terminal."""

    def __init__(self, is_one):
        super().__init__()
        self.isatty = lambda: is_one


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_terminal_gets_a_bar_with_the_time_left(model, asked, monkeypatch, is_terminal):
    stream = Terminal(is_terminal)
    monkeypatch.setattr("sys.stderr", stream)
    task = FewShotTask(Colours(num_test=9), ALL)
    evaluate(model, task, shots=1, batch_size=1, progress=True)
    if is_terminal:
        assert "colours 1 shots" in stream.getvalue() and "/9 [" in stream.getvalue()
    else:
        assert stream.getvalue() == ""


def test_more_queries_and_other_shapes_use_what_is_there(model, asked, tmp_path):
    task = FewShotTask(Colours(num_test=11), FOUR)
    evaluate_all(model, [task], batch_size=1, journals=tmp_path)
    asked.clear()
    model.engine.config, kept = (
        dataclasses.replace(model.engine.config, candidates_per_pass=2),
        model.engine.config,
    )
    rows, _ = evaluate_all(model, [task], batch_size=2, journals=tmp_path)
    assert asked == [] and rows[0].n == 4
    model.engine.config = dataclasses.replace(kept, max_new_tokens=3)
    evaluate_all(model, [task], batch_size=2, journals=tmp_path)
    model.engine.config = kept
    assert asked == [4]


def test_other_weights_are_asked_again(model, asked, tmp_path, monkeypatch):
    """A run that was trained again has the same checkpoint path and step, but other weights."""
    task = FewShotTask(Colours(), FOUR)
    evaluate_all(model, [task], journals=tmp_path)
    params = {**model.engine.params}
    name = "flamingo/media"
    params[name] = {**params[name], "w": params[name]["w"].at[0, 0].add(jnp.float32(1e-3))}
    monkeypatch.setattr(model.engine.compiled, "params", params)
    asked.clear()
    evaluate_all(model, [task], journals=tmp_path)
    assert asked == [4]


@pytest.mark.parametrize("setting", [{"background": "white"}, {"image_fit": "crop"}])
def test_other_pixels_of_the_same_picture_are_asked_again(
    model, asked, tmp_path, monkeypatch, setting
):
    """An export that was made again may have the same weights, and show its images differently."""
    task = FewShotTask(Colours(), FOUR)
    evaluate_all(model, [task], journals=tmp_path)
    for name, value in setting.items():
        monkeypatch.setattr(model.engine, name, value)
    asked.clear()
    evaluate_all(model, [task], journals=tmp_path)
    assert asked == [4]


def test_scores_are_the_same_in_memory_and_from_the_journal(model, asked, tmp_path):
    task = FewShotTask(Colours(metrics=(RANKING,)), dataclasses.replace(ALL, n=3, ensemble=6))
    first, second = (evaluate(model, task, shots=3, journals=tmp_path) for _ in range(2))
    assert outcome(first) == outcome(second)
    alone = evaluate(model, task, shots=3)
    assert outcome(alone) == outcome(first)
    assert asked == [18, 18]


def test_an_ensemble_has_the_mean_of_its_orders(model, asked):
    """Each order is a separate prompt: here each is asked alone, and then all six together."""
    task = FewShotTask(
        Colours(metrics=(RANKING,), num_test=1), dataclasses.replace(ALL, ensemble=6)
    )
    (episode,) = task.episodes(3)
    (row,), (together,) = evaluate(model, task, shots=3)
    candidates = [" red", " green", " blue"]
    requests = [model.request(parts, candidates) for parts in (episode.parts, *episode.orders)]
    each = [answer.scores for answer in model.engine.answer(requests, generate=False, batch_size=1)]
    assert len(set(each)) > 1
    np.testing.assert_allclose(together.scores, np.mean(each, axis=0), rtol=1e-12)
    assert row.ensemble == 6


def test_a_file_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="Cannot"):
        Journal(tmp_path / "file" / "task-0.jsonl", HEADER)


def test_a_text_that_utf_8_does_not_have_is_kept(tmp_path):
    """It must not end a run when its answers are written."""
    journal = Journal(tmp_path / "a.jsonl", HEADER)
    episode = dataclasses.replace(EPISODE, parts=("\ud83d",), query_id="\udc00")
    key = prompt_hash(episode)
    journal.add([episode], [key], [("caf\xe9 \ud83d", None)])
    assert Journal(tmp_path / "a.jsonl", HEADER).finished == {key: ("caf\xe9 \ud83d", None)}
