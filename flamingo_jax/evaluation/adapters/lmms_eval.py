r"""A model class for lmms-eval (0.7): its tasks run on a checkpoint of this package.

    pip install lmms-eval
    python -m lmms_eval --model=flamingo_jax --tasks=mmbench_en_dev,pope --batch_size=8 \
        --model_args=pretrained=runs/instruct/export

lmms-eval finds the class by the entry point of this package, `lmms_eval.models`. Model arguments:

    pretrained       an export, or a WORKDIR
    form             text, question or chat (`questions`); chat if the model was trained on
                     conversations, else question
    max_new_tokens   bound on an answer where the task states none

`Requests` needs no part of lmms-eval; `model_class` makes the subclass that lmms-eval loads.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flamingo_jax.core.config import ConfigError
from flamingo_jax.evaluation.adapters import questions
from flamingo_jax.inference.methods import Greedy
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.prompt import Part, Visual
from flamingo_jax.inference.visuals import from_file

NAME = "flamingo_jax"


class Requests:
    """Answers the requests of lmms-eval.

    Attributes:
        task_dict: {task: {split: documents}}, which lmms-eval sets.
    """

    is_simple = True
    task_dict: Mapping[str, Mapping[str, Any]]

    def __init__(
        self,
        pretrained: str = "",
        batch_size: int | str = 8,
        form: str = "",
        max_new_tokens: int = questions.MAX_NEW_TOKENS,
        *,
        model: Flamingo | None = None,
        **others: object,
    ) -> None:
        """Loads the checkpoint.

        Args:
            pretrained: an export, or a WORKDIR.
            batch_size: prompts answered together; "auto": 8.
            form: see `questions`.
            max_new_tokens: bound on an answer where the task states none.
            model: a model that is loaded already.
            **others: "device" is passed over: JAX takes the accelerator that there is.

        Raises:
            ConfigError: an argument is unknown, or has no checkpoint.
            CheckpointError: there is no model at the path.
        """
        super().__init__()
        if unknown := sorted(set(others) - {"device", "max_batch_size"}):
            raise ConfigError(
                f"lmms-eval: the model {NAME} got --model_args {', '.join(unknown)}; expected "
                "pretrained, form and max_new_tokens."
            )
        if model is None and not pretrained:
            raise ConfigError(
                f"lmms-eval: the model {NAME} needs a checkpoint: "
                "--model_args=pretrained=runs/flamingo/export"
            )
        self.flamingo = model or Flamingo.load(pretrained)
        self.batch = 8 if batch_size == "auto" else int(batch_size)
        self.form = questions.form_of(form, self.flamingo.chat_template)
        self.max_new_tokens = int(max_new_tokens)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Returns the answer to each request.

        Args:
            requests: `args` of each is (context, settings, doc_to_visual, doc_id, task, split).

        Raises:
            PromptError: a prompt cannot be read, or is too long.
        """
        answers: dict[int, str] = {}
        for settings, members in _by_settings(requests).items():
            wanted = {"max_new_tokens": self.max_new_tokens, **json.loads(settings)}
            until = wanted.pop("until", None) or ()
            until = [until] if isinstance(until, str) else until
            prompts = [self._prompt(*_question(requests[number].args)) for number in members]
            texts = self.flamingo.generate(
                prompts, method=questions.method_of(wanted), batch_size=self.batch
            )
            for number, text in zip(members, texts, strict=True):
                answers[number] = questions.cut(text, until)
        return [answers[number] for number in range(len(requests))]

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Returns the log-likelihood of each continuation, and whether greedy decoding begins so.

        Args:
            requests: `args` of each is (context, continuation, doc_to_visual, doc_id, task, split);
                the continuation is a text, or a function of the document.

        Raises:
            PromptError: a prompt cannot be read, or is too long.
        """
        found: dict[int, tuple[float, bool]] = {}
        shared: dict[tuple[Any, ...], list[tuple[int, str]]] = {}
        for number, request in enumerate(requests):
            context, target, visual, *place = request.args
            text = target if isinstance(target, str) else str(target(self._document(*place)))
            text = text if text[:1].isspace() else f" {text}"
            shared.setdefault((context, id(visual), *place), []).append((number, text))
        for members in shared.values():
            prompt = self._prompt(*_question(requests[members[0][0]].args))
            texts = [text for _, text in members]
            distinct = list(dict.fromkeys(texts))
            # A list of prompts: one prompt of text alone is a list of one str, and that is one too.
            scores = dict(zip(distinct, self.flamingo.score([prompt], distinct)[0], strict=True))
            longest = max(len(self.flamingo.tokenizer.encode(text)) for text in distinct)
            greedy = self.flamingo.generate([prompt], method=Greedy(longest))[0].strip()
            for number, text in members:
                found[number] = (scores[text], greedy.startswith(text.strip()))
        return [found[number] for number in range(len(requests))]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Refuses tasks of several rounds, which ask on from what was answered.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            f"lmms-eval: the model {NAME} answers requests of one round (generate_until and "
            "loglikelihood); leave this task out."
        )

    def _document(self, doc_id: Any, task: str, split: str) -> Any:
        return self.task_dict[task][split][doc_id]

    def _prompt(self, context: str, doc_to_visual: Callable[[Any], Any], *place: Any) -> list[Part]:
        shown = doc_to_visual(self._document(*place)) or []
        visuals = [visual_of(each) for each in shown if each is not None]
        template = self.flamingo.chat_template
        return questions.prompt_of(context, visuals, self.form, template)


def visual_of(shown: Any) -> Visual:
    """Returns an image or video of a task: a PIL image, or the path of a file."""
    return from_file(shown) if isinstance(shown, str) else shown


def _question(args: Sequence[Any]) -> tuple[Any, ...]:
    context, _, doc_to_visual, *place = args
    return (context, doc_to_visual, *place)


def _by_settings(requests: Sequence[Any]) -> dict[str, list[int]]:
    """Returns the numbers of the requests by their settings, which a batch shares."""
    groups: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        settings = json.dumps(dict(request.args[1]), sort_keys=True, default=str, allow_nan=False)
        groups.setdefault(settings, []).append(number)
    return groups


@functools.cache
def model_class() -> type:
    """Returns the class that lmms-eval loads: `Requests` on its base class.

    Raises:
        ConfigError: lmms-eval is not installed.
    """
    try:
        from lmms_eval.api.model import lmms
    except ImportError as error:
        raise ConfigError(
            f"lmms-eval cannot be imported ({error}): pip install lmms-eval"
        ) from error
    return type("FlamingoJax", (Requests, lmms), {"__doc__": Requests.__doc__})


def __getattr__(name: str) -> Any:
    if name == "FlamingoJax":
        return model_class()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def manifest() -> Any:
    """Returns the entry of lmms-eval's table of models; the entry point calls it."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id=NAME, simple_class_path=f"{__name__}.FlamingoJax")
