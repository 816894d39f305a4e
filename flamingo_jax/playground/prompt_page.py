"""The page: a prompt on the left, what the model makes of it on the right.

Each row of the prompt has images or videos, and the text after them. The model continues after the
last row. Errors of a prompt are one message on the page, and the server goes on.
"""

from __future__ import annotations

import functools
import html
import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

from flamingo_jax.core import paths, trees
from flamingo_jax.inference.methods import BeamSearch, Greedy, Method, Sample
from flamingo_jax.inference.model import EXPECTED_ERRORS, Flamingo
from flamingo_jax.inference.prompt import Prompt, PromptError
from flamingo_jax.playground import first_prompts, model_views, prompt_files
from flamingo_jax.playground.prompt_files import MOST_MEGABYTES, MOST_ROWS, PromptRow, SavedPrompt

METHODS = ("Greedy", "Beam search", "Sampling")
_AT_FIRST = 2  # rows
_TOLD = (*EXPECTED_ERRORS, ValueError)
_PLACEHOLDERS = {0: "Such as: Output: A cat on a sofa.", 1: "Such as: Output:"}
_HELP = (
    "Each row is an image or a video, and the text after it; either may be empty. Give a few rows "
    "as examples. The model continues after the last row."
)


def build(model: Flamingo, directory: str) -> Any:
    """Returns the page of a model, `gradio.Blocks`.

    Args:
        model: a Flamingo or a language model.
        directory: receives files that the page makes.
    """
    import gradio as gr

    sees = model.engine.image_size is not None
    turn: dict[str, Any] = {"concurrency_id": "model", "concurrency_limit": 1}
    with gr.Blocks(title="Flamingo", analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        gr.HTML(_title(model), padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=6, min_width=420):
                gr.Markdown(f"### Prompt\n{_HELP}" if sees else "### Prompt")
                prompt = _Rows(sees)
                with gr.Row():
                    add = gr.Button("Add a row", size="sm", min_width=90)
                    clear = gr.Button("Clear", size="sm", min_width=70)
                    save = gr.DownloadButton("Save", size="sm", min_width=70)
                    load = gr.UploadButton("Load", size="sm", min_width=70, file_types=[".zip"])
                if sees and first_prompts.fit(model.tokenizer):
                    with gr.Row():
                        buttons = {name: gr.Button(name, size="sm") for name in first_prompts.NAMES}
                else:
                    buttons = {}
            with gr.Column(scale=5, min_width=380):
                gr.Markdown("### Answer")
                kind = gr.Radio(METHODS, value="Greedy", show_label=False, container=False)
                with gr.Accordion("Settings of decoding", open=False):
                    settings = _settings()
                with gr.Row():
                    go = gr.Button("Generate", variant="primary", elem_id="generate")
                    stop = gr.Button("Stop", elem_id="stop", scale=0, min_width=90)
                answer = gr.Textbox(
                    show_label=False, placeholder="The answer appears here.", lines=2,
                    elem_id="answer", interactive=False,
                )  # fmt: skip
                with gr.Tabs():
                    with gr.Tab("Candidates"):
                        texts = gr.Textbox(
                            label="Answers to compare, one per line", lines=3, elem_id="candidates",
                            info="A space is put in front of each, unless the prompt ends in one.",
                        )  # fmt: skip
                        compare = gr.Button("Compare", elem_id="compare")
                        bars = gr.HTML(elem_id="bars")
                    if sees:
                        with gr.Tab("What each token sees"):
                            look = gr.Button("Show", elem_id="look")
                            seen = gr.HTML(elem_id="seen")
                        with gr.Tab("Gates"):
                            gr.HTML(model_views.gates(model.engine.params), elem_id="gates")

        def generate(*values: Any) -> Iterator[str]:
            given = parts_of(values[:-6])
            yield from _told(lambda: pieces(model, given, method_of(*values[-6:])))

        def score(*values: Any) -> str:
            *cells, written = values
            return next(_told(lambda: iter([scored(model, parts_of(cells), written)])))

        def show(*values: Any) -> str:
            *cells, written = values
            return next(_told(lambda: iter([attended(model, parts_of(cells), written)])))

        def download(*values: Any) -> str:
            *cells, written = values
            path = os.path.join(_folder(directory), "prompt.zip")
            prompt_files.save(SavedPrompt(_filled(rows_of(cells)), _lines(written)), path)
            return path

        def upload(path: str) -> list[Any]:
            read = lambda: iter([prompt_files.load(path, _folder(directory))])
            return filled(next(_told(read)))

        def filled(saved: SavedPrompt) -> list[Any]:
            return [*prompt.show(saved.rows), "\n".join(saved.candidates), "", ""]

        def example(name: str) -> list[Any]:
            return filled(first_prompts.make(name, _folder(directory)))

        filling = [*prompt.outputs, texts, answer, bars]
        begun = go.click(lambda: "", None, answer, queue=False)
        running = begun.then(generate, [*prompt.cells, kind, *settings], answer, **turn)
        stop.click(None, cancels=[running])
        compare.click(score, [*prompt.cells, texts], bars, **turn)
        if sees:
            look.click(show, [*prompt.cells, answer], seen, **turn)
        add.click(prompt.with_one_more, prompt.inputs, prompt.outputs)
        clear.click(lambda: filled(SavedPrompt((PromptRow(),) * _AT_FIRST)), None, filling)
        save.click(download, [*prompt.cells, texts], save)
        load.upload(upload, load, filling)
        for name, button in buttons.items():
            button.click(functools.partial(example, name), None, filling)
    return page


class _Rows:
    """The rows of the prompt: all are there from the start, and those in use are visible."""

    def __init__(self, sees: bool) -> None:
        import gradio as gr

        self._groups: list[Any] = []
        self.cells: list[Any] = []
        removals: list[Any] = []
        self._count = gr.State(_AT_FIRST)
        for i in range(MOST_ROWS):
            with gr.Row(visible=i < _AT_FIRST, elem_classes="fj-row", equal_height=True) as group:
                visual = gr.Gallery(
                    label=f"Image {i + 1}", file_types=["image", "video"], columns=1,
                    height=128, object_fit="contain", scale=2, min_width=150, visible=sees,
                    interactive=True, sources=["upload", "clipboard"], buttons=[],
                    elem_id=f"visual{i + 1}",
                )  # fmt: skip
                text = gr.Textbox(
                    label=f"Text {i + 1}", lines=3, max_lines=8, scale=4, min_width=180,
                    elem_id=f"text{i + 1}", placeholder=_PLACEHOLDERS.get(i, ""),
                )  # fmt: skip
                removals.append(
                    gr.Button("✕", size="sm", scale=0, min_width=36, elem_classes="fj-remove")
                )
            visual.upload(self._checked, visual, visual)
            self._groups.append(group)
            self.cells += [visual, text]
        self.inputs = [self._count, *self.cells]
        self.outputs = [self._count, *self._groups, *self.cells]
        for i, button in enumerate(removals):
            button.click(functools.partial(self._without, i), self.inputs, self.outputs)

    def show(self, rows: Sequence[PromptRow]) -> list[Any]:
        """Returns the values of `outputs` that show these rows."""
        import gradio as gr

        rows = list(rows) or [PromptRow()]
        hidden = MOST_ROWS - len(rows)
        visible = [gr.update(visible=i < len(rows)) for i in range(MOST_ROWS)]
        cells: list[Any] = []
        for row in [*rows, *[PromptRow()] * hidden]:
            cells += [list(row.visuals) or None, row.text]
        return [len(rows), *visible, *cells]

    def with_one_more(self, count: int, *cells: Any) -> list[Any]:
        """Returns what shows the rows and an empty one below."""
        rows = rows_of(cells)[:count]
        if count == MOST_ROWS:
            raise _failure(PromptError(f"A prompt has at most {MOST_ROWS} rows: remove one first."))
        return self.show([*rows, PromptRow()])

    def _without(self, index: int, count: int, *cells: Any) -> list[Any]:
        rows = rows_of(cells)[:count]
        return self.show([*rows[:index], *rows[index + 1 :]])

    def _checked(self, visuals: Any) -> Any:
        """Refuses a file that is no image or video, as soon as it is dropped."""
        import gradio as gr

        try:
            for path in _paths(visuals):
                prompt_files.check_file(path)
        except _TOLD as error:
            gr.Warning(_shown(error), duration=20, title="This file was not taken")
            return None
        return visuals


def rows_of(cells: Sequence[Any]) -> list[PromptRow]:
    """Returns the rows that the cells [visuals, text, visuals, text, ...] hold."""
    pairs = zip(cells[::2], cells[1::2], strict=True)
    return [PromptRow(_paths(visuals), text or "") for visuals, text in pairs]


def parts_of(cells: Sequence[Any]) -> Prompt:
    """Returns the prompt of the cells."""
    return prompt_files.parts(rows_of(cells))


def method_of(
    kind: str,
    beams: float | None,
    temperature: float | None,
    top_p: float | None,
    seed: float | None,
    most: float | None,
) -> Method:
    """Returns the method that the page's settings describe; None = a field that was emptied.

    Raises:
        ValueError: a setting that is needed is empty or out of range.
    """
    tokens = int(_given(most, "Most new tokens"))
    if kind == "Beam search":
        return BeamSearch(int(_given(beams, "Beams")), max_new_tokens=tokens)
    if kind == "Sampling":
        return Sample(
            float(_given(temperature, "Temperature")),
            float(_given(top_p, "Top p")),
            int(_given(seed, "Seed")),
            max_new_tokens=tokens,
        )
    return Greedy(max_new_tokens=tokens)


def _given(value: float | None, name: str) -> float:
    if value is None:
        raise ValueError(f"{name} is empty: give a number.")
    return value


def pieces(model: Flamingo, prompt: Prompt, method: Method) -> Iterator[str]:
    """Yields the answer as far as it is known: a search knows it only at its end.

    Raises:
        PromptError: the prompt is empty, cannot be read or is too long.
    """
    # In a list, so that a prompt without visuals is one prompt and not several.
    if isinstance(method, BeamSearch):
        yield model.generate([prompt], method=method)[0].strip()
        return
    text = ""
    for piece in model.stream(cast(Prompt, [prompt]), method=method):
        text += piece
        yield text.strip()
    if not text:
        yield ""


def scored(model: Flamingo, prompt: Prompt, written: str) -> str:
    """Returns the bars of the candidates, one in each line of what was written.

    Raises:
        PromptError: there is none, or the prompt cannot be read.
    """
    texts = _lines(written)
    if not texts:
        raise PromptError("There is nothing to compare: write two or more answers, one per line.")
    last = prompt[-1] if prompt else ""
    space = "" if isinstance(last, str) and last.endswith((" ", "\n")) else " "
    scores = model.score([prompt], [f"{space}{text}" for text in texts])[0]
    return model_views.candidates(texts, scores)


def attended(model: Flamingo, prompt: Prompt, answer: str) -> str:
    """Returns the tokens of a prompt and its answer, with the image that each attends.

    Raises:
        PromptError: the prompt cannot be read.
    """
    read = model.read(prompt)
    words = model.tokenizer.encode_after(read.tail, f" {answer}") if answer.strip() else []
    return model_views.attended(read, words, model.tokenizer, attends=model.engine.model.attends)


def _told(work: Callable[[], Iterator[Any]]) -> Iterator[Any]:
    """Yields what `work` yields; what a user can mend becomes a message on the page."""
    try:
        yield from work()
    except _TOLD as error:
        raise _failure(error) from error


def _failure(error: Exception) -> Exception:
    import gradio as gr

    return gr.Error(_shown(error), duration=20, title="This did not work", print_exception=False)


def _shown(error: Exception) -> str:
    """Returns a message as HTML."""
    message = str(error).removeprefix("prompt: ")
    return html.escape(message[:1].upper() + message[1:])


def _folder(directory: str) -> str:
    """Returns a new directory inside of another one."""
    return str(paths.make_directory(paths.Path(directory) / uuid.uuid4().hex))


def _paths(visuals: Any) -> tuple[str, ...]:
    return tuple(str(path) for path, _ in visuals or ())


def _filled(rows: Sequence[PromptRow]) -> tuple[PromptRow, ...]:
    """Returns the rows without empty ones at the end; at least one."""
    kept = list(rows)
    while len(kept) > 1 and not kept[-1].visuals and not kept[-1].text:
        kept.pop()
    return tuple(kept)


def _lines(written: str | None) -> tuple[str, ...]:
    return tuple(line.strip() for line in (written or "").splitlines() if line.strip())


def _settings() -> list[Any]:
    import gradio as gr

    return [
        gr.Slider(1, 8, value=3, step=1, label="Beams (beam search)"),
        gr.Slider(0.1, 2.0, value=1.0, step=0.1, label="Temperature (sampling)"),
        gr.Slider(0.05, 1.0, value=0.9, step=0.05, label="Top p (sampling)"),
        gr.Number(0, precision=0, label="Seed (sampling)", minimum=0),
        gr.Slider(1, 256, value=20, step=1, label="Most new tokens"),
    ]


def _title(model: Flamingo) -> str:
    weights = trees.count(model.engine.params)
    size = model.engine.image_size
    facts = [
        f"step {model.step:,}",
        f"{weights / 1e6:,.1f} million weights",
        f"images of {size} × {size} pixels" if size else "a language model, without images",
        f"files up to {MOST_MEGABYTES} MB" if size else "",
    ]
    name = html.escape(model.checkpoint)
    return (
        f"<header class='fj-title'><h1>Flamingo</h1><p><code>{name}</code> · "
        f"{' · '.join(filter(None, facts))}</p></header>"
    )
