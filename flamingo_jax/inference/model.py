"""The Python interface: load a model, give it text and images, get text or scores.

    model = Flamingo.load("runs/demo/flamingo/export")
    model.generate([Image("cat.jpg"), "Output: A cat.<EOC>", Image("dog.jpg"), "Output:"])        -> " A dog."
    model.score([Image("dog.jpg"), "Output:"], [" A cat.", " A dog."])                            -> [-7.1, -0.3]
    chat = model.chat()
    chat.say([Image("dog.jpg")]), chat.say("What breed is it?")                                   -> "That is a dog.", "A poodle."

A prompt is a str or a list of parts: text, and images as `Image(path)`, PIL images, encoded bytes or uint8 arrays, or `Video(path)`. A list of
prompts is answered as a batch. `<BOS>` and the `<image>` tags are written for you.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import OpenedCheckpoint, Placement, describe_checkpoint, open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.paths import PathError, PathLike
from flamingo_jax.core.precision import Policy
from flamingo_jax.data.config import ImageFit
from flamingo_jax.inference import placement
from flamingo_jax.inference import prompt as prompts
from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.engine import Answer, Engine, InferenceConfig, Request
from flamingo_jax.inference.prompt import Image, Prompt, PromptError, Video, Visual
from flamingo_jax.inference.score import Normalise
from flamingo_jax.models import api
from flamingo_jax.models.api import Model
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.tokenizers import base as tokenizer_lib
from flamingo_jax.tokenizers.base import Tokenizer

__all__ = ["EXPECTED_ERRORS", "Chat", "Flamingo", "Image", "InferenceConfig", "PromptError", "Video"]

# What a program shows its user as one message, without a traceback.
EXPECTED_ERRORS = (PromptError, CheckpointError, ConfigError, PathError, FileNotFoundError)


class Flamingo:
    """A trained model with its tokenizer, ready to answer prompts. A language model alone (text prompts only) is one without images.

    Attributes:
        tokenizer: of the model.
        checkpoint: where it was loaded from.
        step: the update that it was saved at.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        tokenizer: Tokenizer,
        *,
        image_size: int | None,
        image_fit: ImageFit = "pad",
        config: InferenceConfig | None = None,
        mesh: Mesh | None = None,
        checkpoint: str = "",
        step: int = 0,
        context: int | None = None,
    ) -> None:
        """Takes the parts as they are, for instance in the middle of training; `load` reads them from a checkpoint.

        Args:
            model: pure functions, from `models.api.flamingo` or `models.api.language_model`.
            params: the model's weights.
            tokenizer: of the model, with its new tokens.
            image_size: side of its images in pixels; None for a language model alone.
            image_fit: how an image becomes a square, as in training.
            config: decoding, scoring and the shapes that prompts are padded to.
            mesh: the devices; None = one.
            checkpoint: recorded in results.
            step: recorded in results.
            context: positions that the language model has; None = no bound of its own.

        Raises:
            ConfigError: the model axis of the mesh does not divide the model's heads, widths or vocabulary.
        """
        self.tokenizer, self.checkpoint, self.step = tokenizer, checkpoint, step
        stop = tuple(dict.fromkeys(end for end in (tokenizer.eoc_id, tokenizer.eos_id) if end >= 0))
        self.engine = Engine(
            model,
            params,
            image_size=image_size,
            image_fit=image_fit,
            stop=stop,
            pad_id=tokenizer.pad_id,
            config=config or InferenceConfig(),
            mesh=mesh,
            context=context,
        )

    @classmethod
    def load(
        cls,
        path: PathLike,
        towers: Mapping[str, str | None] | None = None,
        *,
        config: InferenceConfig | None = None,
        mesh: Mesh | None = None,
    ) -> Flamingo:
        """Opens a checkpoint.

        Args:
            path: an export, a WORKDIR (its newest step), or WORKDIR/checkpoints/STEP; local or gs://.
            towers: where frozen towers lie that moved since training: {"lm": PATH, "vision": PATH}.
            config: decoding, scoring and shapes.
            mesh: the devices; None = one. Each process reads those parts of the weights that its devices hold, and no more.

        Raises:
            CheckpointError: the path holds no model, one that cannot answer prompts, or other weights than its config says.
            ConfigError: the model axis of the mesh does not divide the model's heads, widths or vocabulary.
        """
        config = config or InferenceConfig()
        described = describe_checkpoint(path, towers)
        model, lm, tokenizer, image_size = _build(described)
        stored = trees.flatten(described.params)
        wanted = trees.flatten(jax.eval_shape(model.init, jax.eval_shape(lambda: jax.random.key(0))))
        arrays.compare(stored, wanted, where=f"The checkpoint {described.path}")
        opened = open_checkpoint(path, towers, placement=_placement(model, described.params, config, mesh))
        return cls(
            model,
            opened.params,
            tokenizer,
            image_size=image_size,
            image_fit=described.preprocessing.get("image_fit", "pad"),
            config=config,
            mesh=mesh,
            checkpoint=str(opened.path),
            step=opened.step,
            context=lm.max_length if lm.position == "learned" else None,
        )

    def generate(
        self,
        prompts: Any,
        *,
        max_new_tokens: int | None = None,
        beams: int | None = None,
        length_penalty: float | None = None,
        top_p: float | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        batch_size: int = 16,
    ) -> Any:
        """Continues prompts until `<EOC>`.

        Args:
            prompts: one prompt (a str, or a list of text and images), or a list of prompts that are lists.
            max_new_tokens: bound on each answer.
            beams: 1 = greedy, more = beam search (the paper uses 3); by default as configured.
            length_penalty: of beam search; 0 = off.
            top_p: draw each token from the fewest that together have this probability (0..1]; not with `beams`.
            temperature: of drawing; log-probabilities are divided by it.
            seed: of drawing; the same prompt and seed give the same answer, whatever else is answered with it.
            batch_size: prompts answered together.

        Returns:
            The text after the prompt, up to `<EOC>`; a list of them for a list of prompts.

        Raises:
            PromptError: a prompt that cannot be read, or is too long.
            ConfigError: both beams and sampling.
            ValueError: settings out of range.
        """
        if beams is not None and not (top_p is temperature is None):
            raise ConfigError(
                f"Got beams={beams} with top_p={top_p}, temperature={temperature}: search or draw, not both."
            )
        wanted = {"max_new_tokens": max_new_tokens, "beams": beams, "length_penalty": length_penalty}
        wanted |= {"top_p": top_p, "temperature": temperature, "seed": seed}
        changes: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
        if beams is not None:
            changes["decoding"] = "greedy" if beams == 1 else "beam"
        elif "top_p" in changes or "temperature" in changes:
            changes["decoding"] = "sample"
        config = dataclasses.replace(self.engine.config, **changes)
        many, batch = _as_batch(prompts)
        requests = [Request(self.read(prompt)) for prompt in batch]
        texts = [self.text(answer) for answer in self.engine.answer(requests, batch_size=batch_size, config=config)]
        return texts if many else texts[0]

    def score(
        self, prompt: Any, candidates: Sequence[str], *, normalise: Normalise | None = None, batch_size: int = 16
    ) -> Any:
        """Log-likelihood of each candidate as the continuation of a prompt.

        Args:
            prompt: one prompt, or a list of prompts that are lists; as for `generate`.
            candidates: texts that may follow, each with its leading space if the tokenizer wants one.
            normalise: "sum" over a candidate's tokens, or their "mean"; by default as configured.
            batch_size: prompts answered together.

        Returns:
            A score per candidate; a list of such lists for a list of prompts.

        Raises:
            PromptError: a prompt or a candidate that cannot be read.
        """
        config = dataclasses.replace(self.engine.config, normalise=normalise or self.engine.config.normalise)
        many, batch = _as_batch(prompt)
        tokens = self.candidate_tokens(candidates)
        requests = [Request(self.read(one), tokens) for one in batch]
        scores = [
            list(answer.scores)
            for answer in self.engine.answer(requests, generate=False, batch_size=batch_size, config=config)
        ]
        return scores if many else scores[0]

    def chat(self, images: Sequence[Visual] = (), *, max_new_tokens: int = 64, **settings: Any) -> Chat:
        """Starts a dialogue about images: `chat().say([Image("dog.jpg"), "What breed is it?"])`; see `inference.chat`.

        Args:
            images: for the example turns of the prompt: a cat, people at dinner, a graph; or none.
            max_new_tokens: bound on each answer.
            **settings: of `generate`; greedy by default, as in the paper's figures.

        Raises:
            PromptError: another number of images.
        """
        if not settings.keys() & {"beams", "top_p", "temperature"}:
            settings["beams"] = 1
        generate = functools.partial(self.generate, max_new_tokens=max_new_tokens, **settings)
        return Chat(generate, images)

    def read(self, prompt: Prompt, *, masked: bool = False) -> prompts.TokenisedPrompt:
        """Tokenises one prompt; see `inference.prompt.read`.

        Raises:
            PromptError: a prompt that cannot be read, or has neither text nor image.
        """
        parts = [prompt] if isinstance(prompt, str) else prompt
        if all(isinstance(part, str) and not part.strip() for part in parts):
            raise PromptError("prompt: it is empty. Give it text or an image, such as [Image('cat.jpg'), 'Output:'].")
        return prompts.read(prompt, self.tokenizer, masked=masked)

    def candidate_tokens(self, candidates: Sequence[str]) -> tuple[tuple[int, ...], ...]:
        """Token ids of candidates, with `<EOC>` (in a model without one, `<EOS>`) behind them if the config says so."""
        end = self.engine.stop[:1] if self.engine.config.terminate == "end_of_chunk" else ()
        return tuple((*self.tokenizer.encode(candidate), *end) for candidate in candidates)

    def text(self, answer: Answer) -> str:
        """The text of an answer's tokens."""
        return self.tokenizer.decode(answer.tokens or ())


def _build(described: OpenedCheckpoint) -> tuple[Model, LMConfig, Tokenizer, int | None]:
    """The pure functions, the language model's config, the tokenizer and the image size of a checkpoint."""
    if described.kind == "contrastive" or described.tokenizer is None:
        raise CheckpointError(
            f"The checkpoint {described.path} is a {described.kind} model and cannot answer prompts: give one of the flamingo or language_model stage."
        )
    new_tokens = described.new_tokens if described.kind == "flamingo" else ()  # a tower has no rows for them
    tokenizer = tokenizer_lib.load(described.tokenizer, new_tokens)
    config = from_dict(ModelConfig, described.model_config, where="model").with_vocabulary(tokenizer.vocab_size)
    lm = required(config.lm, "lm")
    if described.kind == "flamingo":
        return api.flamingo(config.flamingo()), lm, tokenizer, described.preprocessing["image_size"]
    return api.language_model(lm), lm, tokenizer, None


def _placement(model: Model, abstract: trees.Params, config: InferenceConfig, mesh: Mesh | None) -> Placement | None:
    """Where `open_checkpoint` puts each weight of a mesh, in the dtype of `config`; None on one device."""
    if mesh is None:
        return None
    shardings = trees.flatten(placement.shardings(model, abstract, mesh))
    dtype = Policy(config.compute).dtype

    def place(path: str, stored: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(stored.shape, dtype, sharding=shardings[path])

    return place


def _as_batch(prompts: Any) -> tuple[bool, list[Prompt]]:
    """Whether several prompts were given, and a list of prompts. Several prompts are a list of lists."""
    if isinstance(prompts, str):
        return False, [prompts]
    if isinstance(prompts, Sequence) and prompts and all(isinstance(prompt, list | tuple) for prompt in prompts):
        return True, list(prompts)
    return False, [prompts]
