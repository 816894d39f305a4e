"""The Python interface: load a model, give it text and images, get text or scores.

    model = Flamingo.load("runs/demo/flamingo/export")
    prompt = [Image("cat.jpg"), "Output: A cat.<EOC>", Image("dog.jpg"), "Output:"]
    model.generate(prompt)                                                -> " A dog."
    for piece in model.stream(prompt): print(piece, end="")               -> " A", " dog", "."
    model.score([Image("dog.jpg"), "Output:"], [" A cat.", " A dog."])    -> [-7.1, -0.3]
    model.generate(["Output: A", "Output: The"], method=BeamSearch(3))    -> [" dog.", " cat."]

    chat = model.chat()
    chat.say([Image("dog.jpg")])                                          -> "That is a dog."
    chat.say("What breed is it?")                                         -> "A poodle."

A prompt is a str or a list of parts: text, and visuals as `Image(path)`, PIL images, encoded bytes,
uint8 arrays or `Video(path)`. A list of prompts is answered as a batch, and so is a list of strings
without a visual (`prompt.as_batch` has the rule). `<BOS>` and the `<image>` tags are added for you.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import overload

from jax.sharding import Mesh

from flamingo_jax.checkpoint import arrays
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import (
    OpenedCheckpoint,
    describe_checkpoint,
    open_checkpoint,
)
from flamingo_jax.core import trees
from flamingo_jax.core.config import ConfigError, from_dict
from flamingo_jax.core.finite import NonFiniteError
from flamingo_jax.core.paths import PathError, PathLike
from flamingo_jax.core.trees import Params
from flamingo_jax.data.config import Background, ImageFit
from flamingo_jax.inference import placement
from flamingo_jax.inference import prompt as prompts
from flamingo_jax.inference.candidates import Candidates, as_candidates
from flamingo_jax.inference.chat import Chat
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.engine import Engine
from flamingo_jax.inference.methods import BeamSearch, Greedy, Method, Sample
from flamingo_jax.inference.prompt import (
    Image,
    Part,
    Prompt,
    PromptError,
    Prompts,
    Video,
    Visual,
    as_batch,
)
from flamingo_jax.inference.request import Reply, Request
from flamingo_jax.inference.score import Normalise, check_normalise
from flamingo_jax.inference.text_pieces import text_of
from flamingo_jax.models import api, int8
from flamingo_jax.models.api import Model
from flamingo_jax.models.config import ModelConfig, required
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.tokenizers.base import Tokenizer
from flamingo_jax.tokenizers.chat_template import PAPER, ChatTemplate
from flamingo_jax.tokenizers.load import load_tokenizer

__all__ = [
    "EXPECTED_ERRORS",
    "BeamSearch",
    "Chat",
    "Flamingo",
    "Greedy",
    "Image",
    "InferenceConfig",
    "PromptError",
    "Sample",
    "Video",
    "load",
]

# Errors that a program shows as one message, without a traceback.
EXPECTED_ERRORS = (
    *(PromptError, CheckpointError, ConfigError, PathError, FileNotFoundError),
    NonFiniteError,
)
DIALOGUE = Greedy(max_new_tokens=64)  # as in the paper's figures


class Flamingo:
    """A trained model with its tokenizer, ready to answer prompts.

    A language model is loaded in the same way, and answers prompts without visuals.

    Attributes:
        tokenizer: of the model.
        checkpoint: path that the model was loaded from.
        step: the update at which it was saved.
        chat_template: how a dialogue is written.
    """

    def __init__(
        self,
        model: Model,
        params: Params,
        tokenizer: Tokenizer,
        *,
        image_size: int | None,
        image_fit: ImageFit = "pad",
        background: Background = "mean",
        config: InferenceConfig | None = None,
        mesh: Mesh | None = None,
        checkpoint: str = "",
        step: int = 0,
        context: int | None = None,
        chat_template: ChatTemplate = PAPER,
    ) -> None:
        """Takes the parts as they are, for instance during training; `load` reads a checkpoint.

        Args:
            model: pure functions, from `models.api.flamingo` or `models.api.language_model`.
            params: the weights.
            tokenizer: of the model, with its new tokens.
            image_size: side of the images in pixels; None for a language model.
            image_fit: how an image becomes a square, as in training.
            background: what is behind transparent pixels, as in training.
            config: decoding, scoring and the shapes that prompts are padded to.
            mesh: the devices; None = one.
            checkpoint: recorded in results.
            step: recorded in results.
            context: the most tokens of prompt and answer together that the language model has
                positions for; None = no such bound.
            chat_template: how a dialogue is written.

        Raises:
            ConfigError: the model axis of the mesh does not divide the model's heads, widths or
                vocabulary.
        """
        self.tokenizer, self.checkpoint, self.step = tokenizer, checkpoint, step
        self.chat_template = chat_template
        self._candidates = Candidates(tokenizer)
        ends = (tokenizer.eoc_id, tokenizer.eos_id, *tokenizer.markers.ends)
        stop = tuple(dict.fromkeys(end for end in ends if end >= 0))
        self.engine = Engine(
            model,
            params,
            image_size=image_size,
            image_fit=image_fit,
            background=background,
            stop=stop,
            pad_id=tokenizer.pad_id,
            config=config or InferenceConfig(),
            mesh=mesh,
            context=context,
            name=checkpoint,
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
            path: an export, a WORKDIR (its newest step), or WORKDIR/checkpoints/STEP; local, gs://,
                or an export's name on the Hub, org/name[@revision].
            towers: paths of frozen towers that have moved since training, {"lm": PATH, "vision":
                PATH}.
            config: decoding, scoring and shapes.
            mesh: the devices; None = one. Each process reads only the parts of the weights that its
                devices need.

        Raises:
            CheckpointError: there is no model at the path, it cannot answer prompts, or its weights
                are not those of its config.
            ConfigError: the model axis of the mesh does not divide the model's heads, widths or
                vocabulary.
        """
        config = config or InferenceConfig()
        described = describe_checkpoint(path, towers)
        model, lm, tokenizer, image_size = _build(described)
        stored = trees.flatten(described.params)
        wanted = trees.flatten(int8.as_stored(model.init, described.params))
        arrays.compare(stored, wanted, where=f"The checkpoint {described.path}")
        contracted = int8.contracted_axes(model.init, config.policy)
        about = (model, described.params, config, mesh, contracted)
        opened = open_checkpoint(
            described.path,
            towers,
            placement=placement.of_weights(*about),
            change=placement.rounding(*about),
        )
        return cls(
            model,
            opened.params,
            tokenizer,
            image_size=image_size,
            image_fit=described.preprocessing.get("image_fit", "pad"),
            background=described.preprocessing.get("background", "mean"),
            chat_template=from_dict(
                ChatTemplate, described.preprocessing.get("chat", {}), where="preprocessing.chat"
            ),
            config=config,
            mesh=mesh,
            checkpoint=str(opened.path),
            step=opened.step,
            context=lm.max_length if lm.position == "learned" else None,
        )

    # A str is a Sequence[str], and that is a Sequence[Part]: the first overload that fits counts.
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: str, *, method: Method | None = None, batch_size: int = 16
    ) -> str: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Sequence[Prompt], *, method: Method | None = None, batch_size: int = 16
    ) -> list[str]: ...
    @overload
    def generate(
        self, prompts: Sequence[Part], *, method: Method | None = None, batch_size: int = 16
    ) -> str: ...
    def generate(
        self,
        prompts: Prompts,
        *,
        method: Method | None = None,
        batch_size: int = 16,
        **unknown: object,
    ) -> str | list[str]:
        """Continues prompts until `<EOC>`.

        Args:
            prompts: one prompt: a str, or a list with an image or a video in it. Or several: a list
                of strings, or a list of such lists.
            method: `Greedy`, `BeamSearch` or `Sample`; None = as the model's config says.
            batch_size: prompts answered together.
            **unknown: other names, which are an error that says where the settings are.

        Returns:
            The text after the prompt, up to `<EOC>`; a list of texts for several prompts.

        Raises:
            PromptError: a prompt cannot be read, or is too long.
            ConfigError: `method` or `batch_size` is none.
            TypeError: an unknown name.
        """
        if unknown:
            raise TypeError(
                f"generate: got {_named(unknown)}; expected prompts, method and batch_size. "
                "Settings of decoding are in the method: generate(prompt, method=BeamSearch(3, "
                "max_new_tokens=20)), Greedy(...) or Sample(...)."
            )
        batch, is_list = as_batch(prompts)
        requests = [self.request(prompt) for prompt in batch]
        answers = self.engine.answer(
            requests, batch_size=batch_size, method=method, across_calls=True
        )
        texts = [self.text(answer) for answer in answers]
        return texts if is_list else texts[0]

    def stream(self, prompt: Prompt, *, method: Method | None = None) -> Iterator[str]:
        """Yields what `generate` returns while it is decoded; no piece of text is taken back.

        Raises:
            PromptError: as `generate`, or there are several prompts.
            ConfigError: `method` is neither `Greedy` nor `Sample`.
        """
        request = self.request(prompts.only(prompt))
        return text_of(self.engine.stream([request], [method], across_calls=True), self.tokenizer)

    @overload
    def score(  # type: ignore[overload-overlap]
        self,
        prompt: str,
        candidates: Sequence[str],
        *,
        normalise: Normalise | None = None,
        batch_size: int = 16,
    ) -> list[float]: ...
    @overload
    def score(  # type: ignore[overload-overlap]
        self,
        prompt: Sequence[Prompt],
        candidates: Sequence[str],
        *,
        normalise: Normalise | None = None,
        batch_size: int = 16,
    ) -> list[list[float]]: ...
    @overload
    def score(
        self,
        prompt: Sequence[Part],
        candidates: Sequence[str],
        *,
        normalise: Normalise | None = None,
        batch_size: int = 16,
    ) -> list[float]: ...
    def score(
        self,
        prompt: Prompts,
        candidates: Sequence[str],
        *,
        normalise: Normalise | None = None,
        batch_size: int = 16,
        **unknown: object,
    ) -> list[float] | list[list[float]]:
        """Returns the log-likelihood of each candidate as the continuation of a prompt.

        Args:
            prompt: one prompt or several, as for `generate`.
            candidates: texts that may follow directly: " yes" after "Answer:". They are scored as
                the tokens that they have in the joined text (`inference.candidates`).
            normalise: "sum" over a candidate's tokens, or their "mean"; None = as the model's
                config says.
            batch_size: prompts answered together.
            **unknown: other names, which are an error.

        Returns:
            A score for each candidate; a list of such lists for several prompts.

        Raises:
            PromptError: a prompt or a candidate cannot be read.
            ConfigError: `normalise` or `batch_size` is none of those.
            TypeError: an unknown name.
        """
        if unknown:
            raise TypeError(
                f"score: got {_named(unknown)}; expected prompt, candidates, normalise and "
                "batch_size."
            )
        check_normalise(normalise)
        config = self.engine.config
        config = dataclasses.replace(config, normalise=normalise or config.normalise)
        batch, is_list = as_batch(prompt)
        texts = as_candidates(candidates)
        requests = [self.request(one, texts) for one in batch]
        answers = self.engine.answer(
            requests, generate=False, batch_size=batch_size, config=config, across_calls=True
        )
        scores = [list(answer.scores) for answer in answers]
        return scores if is_list else scores[0]

    def chat(self, images: Sequence[Visual] = (), *, method: Method = DIALOGUE) -> Chat:
        """Starts a dialogue: `chat().say([Image("dog.jpg"), "What breed is it?"])`.

        `inference.chat` has the prompt.

        Args:
            images: for the example turns: a cat, people at dinner, a graph; or none.
            method: how each answer is chosen.

        Raises:
            PromptError: another number of images.
        """

        def generate(prompt: Prompt) -> str:
            # In a list, so that a dialogue without images is one prompt and not several.
            parts = [prompt] if isinstance(prompt, str) else prompt
            return self.generate([parts], method=method)[0]

        return Chat(generate, images, self.chat_template)

    def read(self, prompt: Prompt, *, masked: bool = False) -> prompts.TokenisedPrompt:
        """Tokenises one prompt; arguments as in `inference.prompt.read`.

        Raises:
            PromptError: the prompt cannot be read, has neither text nor a visual, or has a visual
                and the model is a language model.
        """
        parts = [prompt] if isinstance(prompt, str) else prompt
        num_visuals = sum(not isinstance(part, str) for part in parts)
        if num_visuals and self.engine.image_size is None:
            raise PromptError(
                f"prompt: it has {num_visuals} image(s), but this checkpoint is a language model: "
                "give it text alone."
            )
        if all(isinstance(part, str) and not part.strip() for part in parts):
            raise PromptError(
                "prompt: it is empty. Give it text or an image, such as "
                "[Image('cat.jpg'), 'Output:']."
            )
        return prompts.read(prompt, self.tokenizer, masked=masked)

    def request(
        self,
        prompt: Prompt,
        candidates: Sequence[str] = (),
        *,
        separator: str = "",
        masked: bool = False,
    ) -> Request:
        """Tokenises one prompt and the candidates that may follow it.

        If the config says so, `<EOC>` is the last token of a candidate. A model without `<EOC>` has
        `<EOS>` instead.

        Args:
            prompt: text and visuals.
            candidates: texts that follow it.
            separator: text between the prompt and each candidate.
            masked: as in `inference.prompt.read`.

        Raises:
            PromptError: as `read`, or a candidate is no str.
        """
        read = self.read(prompt, masked=masked)
        read, tokens = self._candidates.after(read, candidates, separator=separator)
        end = self.engine.stop[:1] if self.engine.config.terminate == "end_of_chunk" else ()
        return Request(read, tuple((*ids, *end) for ids in tokens) if end else tokens)

    def text(self, answer: Reply) -> str:
        """Returns the text of an answer's tokens."""
        return self.tokenizer.decode(answer.tokens or ())


def _named(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in values.items())


def _build(described: OpenedCheckpoint) -> tuple[Model, LMConfig, Tokenizer, int | None]:
    """(model, config of its language model, tokenizer, image size or None) of a checkpoint."""
    if described.kind == "contrastive" or described.tokenizer is None:
        raise CheckpointError(
            f"The checkpoint {described.path} is a {described.kind} model and cannot answer "
            "prompts: give one of the flamingo or language_model stage."
        )
    # A language model has no rows for new tokens.
    new_tokens = described.new_tokens if described.kind == "flamingo" else ()
    try:
        tokenizer = load_tokenizer(described.tokenizer, new_tokens, in_prompts=True)
    except ValueError as error:
        raise CheckpointError(
            f"The tokenizer of {described.path} cannot be loaded: {error}"
        ) from error
    config = from_dict(ModelConfig, described.model_config, where="model").with_vocabulary(
        tokenizer.vocab_size
    )
    lm = required(config.lm, "lm")
    if described.kind == "flamingo":
        return api.flamingo(config.flamingo()), lm, tokenizer, described.preprocessing["image_size"]
    return api.language_model(lm), lm, tokenizer, None


load = Flamingo.load
