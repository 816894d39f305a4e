"""Measures generation and the training step against OpenFlamingo's code.

Both have the same weights, and run on the same processor in one process.

    python -m tests.benchmarks.open_flamingo [--rows=1,16] [--shots=0,4,32] [--tokens=16]
        [--beams=1] [--support=64] [--fixed=1] [--rounds=3] [--train=8]

Both sides have the random weights of one model, converted, in float32: the geometry of its 3B (MPT
with heads of 128 and ALiBi, a gated layer of 8 heads of 64 before every block, a perceiver of 6
layers and 64 latents) at a quarter of the widths and a third of the layers. All run in turn, round
by round, after compilation and warm-up; the best of the rounds counts.

Generation is the whole call: it encodes the images of the prompt, reads the prompt and decodes
tokens (greedily, or by beam search with --beams), none of which ends an answer. A shot is one image
and 24 tokens. All images differ, so ours gains nothing from encoding equal images once. The last
line of the table is an exception: its prompts share a set of support images (--support), as in a
few-shot evaluation (the paper's sets have 2,048). With --fixed, a further line asks one query after
another about the same examples, each with an image and text of its own: ours has read the examples
in an earlier call (the prefix cache), theirs reads them each time.

Ours is `inference.engine` as users call it, with the length of the prompts and their number of
images, and unrolled layers. Theirs is `Flamingo.generate` with its cache. One padding token is
before each prompt, since it does not run without on this version of transformers. Both must give
the same tokens. The parts are timed by whole calls of one new token, and by calls of the image
encoders alone.

A training step is forward, backward, a clip at norm 1 and AdamW on what is trained, on pages of 256
tokens and 5 images. Ours is the step of `training.run`. Theirs is written as their training code
is: gradients of the whole token table, set to zero except for the new rows. The first losses must
agree. Both generation and training compile each layer by itself, unless --layers is "scanned".
"""

import argparse
import dataclasses
import os
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal

import jax
import numpy as np
import torch

from flamingo_jax.conversion import publishers
from flamingo_jax.conversion.mapping import Conversion, load_params
from flamingo_jax.core import host_memory, trees
from flamingo_jax.core.precision import Policy
from flamingo_jax.core.stack import Loops
from flamingo_jax.data.config import NO_AUGMENTATION, DataConfig, DatasetConfig
from flamingo_jax.data.schema import Batch
from flamingo_jax.data.to_device import to_device
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.engine import Engine
from flamingo_jax.inference.prompt import TokenisedPrompt
from flamingo_jax.inference.request import Request
from flamingo_jax.models import api
from flamingo_jax.sharding.mesh import MeshConfig, make_mesh
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.optimizer import OptimizerConfig
from tests.parity import open_flamingo_models as models

QUARTER = models.Sizes(
    pieces=8_000, table=8_064, width=512, num_heads=4, num_layers=8, length=2_048,
    vision_width=256, vision_layers=2, vision_heads=4, vision_mlp=1_024,
    image_size=112, patch_size=14,
)  # fmt: skip
TEXT = 24  # tokens of a shot, its tag included
CHUNK, MOST_IMAGES = InferenceConfig().xattn_chunk, InferenceConfig().images_per_pass
SHORT = 8  # a prompt of less than a chunk is padded to a multiple of this
PAGE, PAGE_IMAGES = 256, 5
LEARNING_RATE, DECAY = 1e-4, 0.1
LOSSES_AGREE = 1e-4  # relative: float32 sums in another order

REST = (
    # seconds between runs: threads of the one side spin for a while before they leave the processor
    # to the other
    0.3
)

Run = Callable[[], Any]
Compute = Literal["float32", "bfloat16"]


@dataclasses.dataclass(frozen=True)
class Pair:
    """One model, twice: theirs as a torch module, ours as a conversion and its weights.

    Attributes:
        theirs: the torch module.
        conversion: of its files to our model.
        params: our weights, float32.
        sizes: of the model.
        device: PyTorch's name of the device of theirs.
    """

    theirs: Any
    conversion: Conversion
    params: trees.Params
    sizes: models.Sizes = QUARTER
    device: str = "cpu"

    @classmethod
    def make(cls, threads: int, sizes: models.Sizes = QUARTER, device: str = "cpu") -> "Pair":
        """Makes the random model, and carries it over."""
        model = models.build("mpt", 1, sizes=sizes, device=device)
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as directory:
            conversion = publishers.describe(
                "open_flamingo", models.write(model, pathlib.Path(directory))
            )
            return cls(model.flamingo, conversion, load_params(conversion), sizes, device)

    @property
    def new_pieces(self) -> range:
        """The pieces <EOC>, <image> and padding."""
        return range(self.sizes.pieces, self.sizes.pieces + 3)

    def images(self, count: int, seed: int) -> np.ndarray:
        """Different images, uint8 [count, S, S, 3]."""
        size = self.sizes.image_size
        return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), np.uint8)

    def placed(self, array: np.ndarray) -> torch.Tensor:
        """Puts an array on the device of theirs."""
        return torch.tensor(array).to(self.device)

    def pixels(self, frames: np.ndarray) -> torch.Tensor:
        """Puts frames on the device of theirs, in the dtype of its weights."""
        dtype = next(self.theirs.parameters()).dtype
        return models.pixels(frames).to(self.device, dtype)

    def wait(self) -> None:
        """Waits for the device of theirs."""
        if self.device != "cpu":
            torch.cuda.synchronize()


class Generation:
    """Prompts of one shape, and how each side answers them."""

    def __init__(
        self,
        pair: Pair,
        rows: int,
        shots: int,
        *,
        beams: int = 1,
        support: int = 0,
        fixed: bool = False,
        layers: Loops = "unrolled",
        compute: Compute = "float32",
    ):
        """Makes the prompts: `shots` examples and the query, an image and its text each.

        The examples are drawn from `support` images, or all are different (0). If they are `fixed`,
        each call has another query after them.
        """
        rng = self.rng = np.random.default_rng(rows + shots)
        self.pair = pair
        _, self._image, self._pad = pair.new_pieces
        self.tokens = rng.integers(2, pair.sizes.pieces, (rows, (shots + 1) * TEXT))
        self.tokens[:, ::TEXT] = self._image
        distinct = support + rows if support else rows * (shots + 1)
        which = np.arange(distinct).reshape(rows, -1) if not support else np.stack([
            [*rng.choice(support, shots, replace=False), support + row] for row in range(rows)
        ])  # fmt: skip
        self.frames = pair.images(distinct, seed=shots)[which]
        self.fixed = fixed
        # Every call encodes its images anew, but for fixed examples. Long prompts are padded to
        # whole chunks of the cross-attention, and images to what is there.
        length = self.tokens.shape[1]
        multiple = CHUNK if length > CHUNK else SHORT
        self.beams = beams
        self.config = InferenceConfig(
            decoding="greedy" if beams == 1 else "beam",
            beams=beams,
            beam_ends="best",
            lengths=((32,) if fixed else ()) + (-(-length // multiple) * multiple,),
            images_per_pass=1 if fixed else min(distinct, MOST_IMAGES),
            latents_megabytes=0,
            layers=layers,
            compute=compute,
        )
        functions = api.flamingo(pair.conversion.model.flamingo())
        self.engine = Engine(
            functions,
            pair.params,
            image_size=pair.sizes.image_size,
            stop=(-1,),
            pad_id=self._pad,
            config=self.config,
        )
        self._pair = pair

    def ask(self) -> None:
        """Takes another query if the examples are fixed."""
        if self.fixed:
            self.tokens[:, 1 - TEXT :] = self.rng.integers(2, self.pair.sizes.pieces, TEXT - 1)
            self.frames[:, -1] = self.pair.images(1, seed=int(self.rng.integers(1 << 30)))

    def ours(self, new: int) -> list[list[int]]:
        """Returns the new tokens of each prompt."""
        requests = [
            Request(
                TokenisedPrompt(
                    row.astype(np.int32),
                    np.cumsum(row == self._image).astype(np.int32),
                    tuple(frames),
                )
            )
            for row, frames in zip(self.tokens, self.frames, strict=True)
        ]
        config = dataclasses.replace(self.config, max_new_tokens=new)
        answers = self.engine.answer(
            requests, batch_size=len(requests), config=config, across_calls=self.fixed
        )
        return [list(answer.tokens or ()) for answer in answers]

    def encoded_by_ours(self) -> object:
        """Encodes only the images that a call encodes."""
        new = self.frames[:, -1:] if self.fixed else self.frames
        return self.engine._latents([frame for row in new for frame in row])

    def of_theirs(self, new: int) -> list[list[int]]:
        """The same."""
        padded = np.pad(self.tokens, ((0, 0), (1, 0)), constant_values=self._pad)
        ids = self._pair.placed(padded)
        with torch.inference_mode():
            out = self._pair.theirs.generate(
                vision_x=self._pair.pixels(self.frames),
                lang_x=ids,
                attention_mask=(ids != self._pad).long(),
                max_new_tokens=new,
                num_beams=self.beams,
                length_penalty=0.0,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=self._pad,
                use_cache=True,
            )
        return out[:, ids.shape[1] :].tolist()

    def encoded_by_theirs(self) -> None:
        """Encodes only the images, once for each beam, as its `generate` does."""
        with torch.inference_mode():
            self._pair.theirs._encode_vision_x(
                self._pair.pixels(self.frames).repeat_interleave(self.beams, dim=0)
            )
        self._pair.theirs.lang_encoder.clear_conditioned_layers()
        self._pair.wait()


class Training:
    """One batch of pages, and an update of each side."""

    def __init__(
        self,
        pair: Pair,
        rows: int,
        compute: Compute = "float32",
        *,
        layers: Loops = "unrolled",
    ):
        """Makes the pages: images at even distances, each with its text up to an <EOC>.

        All of it is predicted but the tags.
        """
        rng = np.random.default_rng(rows)
        eoc, image, _ = pair.new_pieces
        tokens = rng.integers(2, pair.sizes.pieces, (rows, PAGE))
        starts = np.linspace(0, PAGE, PAGE_IMAGES, endpoint=False).astype(int)
        tokens[:, starts], tokens[:, starts[1:] - 1] = image, eoc
        frames = pair.images(rows * PAGE_IMAGES, seed=1)
        self._pair, self._compute, self._layers = pair, compute, layers
        self._ours(pair, tokens, frames)
        self._theirs(pair, tokens, frames)

    def _ours(self, pair: Pair, tokens: np.ndarray, frames: np.ndarray) -> None:
        rows, (_, image, _) = len(tokens), pair.new_pieces
        batch = Batch(
            tokens=tokens.astype(np.int32),
            segment=np.ones(tokens.shape, np.int32),
            loss_weights=(tokens != image).astype(np.float32),
            media_index=np.cumsum(tokens == image, axis=1).astype(np.int32),
            media_slot=np.arange(len(frames), dtype=np.int32).reshape(rows, -1),
            frames=frames[:, None],
            frame_mask=np.ones((len(frames), 1), bool),
        )
        dataset = DatasetConfig("interleaved", "", rows, PAGE, max_images=PAGE_IMAGES)
        config = TrainConfig(
            stage="flamingo",
            steps=1_000,
            model=pair.conversion.model,
            data=DataConfig("", pair.sizes.image_size, {"pages": dataset}, augment=NO_AUGMENTATION),
            optimizer=OptimizerConfig(
                learning_rate=LEARNING_RATE, warmup_steps=0, weight_decay=DECAY, clip_norm=1.0
            ),
            precision=Policy(self._compute),
            layers=self._layers,
        ).resolved(pair.sizes.pieces)
        mesh = make_mesh(MeshConfig(), jax.devices()[:1])
        run = run_lib.compile(config, mesh)
        frozen = {
            path: path in trees.flatten(run.layout.stored_frozen)
            for path in trees.flatten(pair.params)
        }
        kept, trained = trees.partition(pair.params, frozen)
        place = lambda tree: jax.tree.map(jax.numpy.array, tree)
        state = run.layout.init_trained(jax.random.key(0))
        self._state = dataclasses.replace(
            state,
            trainable=place(trained),
            frozen=run.layout.compute_form(place(Policy(self._compute).cast(kept))),
        )
        self._step, self._batches, self._key = (
            run.step,
            {"pages": to_device(batch, mesh)},
            jax.random.key(1),
        )

    def _theirs(self, pair: Pair, tokens: np.ndarray, frames: np.ndarray) -> None:
        self._model, self._ids = pair.theirs.train(), pair.placed(tokens)
        self._pixels = pair.pixels(frames.reshape(len(tokens), -1, *frames.shape[1:]))
        _, image, _ = pair.new_pieces
        self._labels = torch.where(self._ids == image, -100, self._ids)
        lm = self._model.lang_encoder
        self._table = lm.get_input_embeddings().weight
        self._model.requires_grad_(requires_grad=False)
        for part in (self._model.perceiver, lm.gated_cross_attn_layers, lm.get_input_embeddings()):
            part.requires_grad_(requires_grad=True)
        named = [
            (name, leaf) for name, leaf in self._model.named_parameters() if leaf.requires_grad
        ]
        decayed = [leaf for name, leaf in named if "gated_cross_attn_layer" in name]
        others = [leaf for name, leaf in named if "gated_cross_attn_layer" not in name]
        groups = [
            {"params": decayed, "weight_decay": DECAY},
            {"params": others, "weight_decay": 0.0},
        ]
        self._trained = decayed + others
        self._optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE)

    def ours(self) -> float:
        """Does one update; returns the loss before it."""
        self._state, metrics = self._step(self._state, self._batches, self._key)
        jax.block_until_ready(self._state)
        return float(metrics["loss"])

    def of_theirs(self) -> float:
        """The same."""
        is_mixed = self._compute == "bfloat16"  # their --precision=amp_bfloat16
        with torch.autocast(self._pair.device, torch.bfloat16, enabled=is_mixed):
            loss = self._model(
                vision_x=self._pixels,
                lang_x=self._ids,
                attention_mask=torch.ones_like(self._ids),
                labels=self._labels,
            ).loss
        loss.backward()
        mask = torch.zeros_like(self._table.grad)
        mask[self._pair.sizes.pieces :] = 1.0
        self._table.grad = self._table.grad * mask
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._pair.wait()
        return float(loss.detach())


def best(
    runs: dict[str, Run], rounds: int, before: Callable[[], None] = lambda: None
) -> dict[str, float]:
    """Seconds of each, the best of the rounds, run in turn; `before` is called before each."""
    found: dict[str, float] = dict.fromkeys(runs, float("inf"))
    for _ in range(rounds):
        for name, run in runs.items():
            before()
            time.sleep(REST)
            start = time.perf_counter()
            run()
            found[name] = min(found[name], time.perf_counter() - start)
    return found


def generation(pair: Pair, rows: int, shots: int, new: int, *, rounds: int, **settings: Any) -> str:
    """Measures one shape of prompts; returns a line of the table."""
    side = Generation(pair, rows, shots, **settings)
    for _ in range(2):  # the second query goes on from the examples of the first
        side.ask()
        side.ours(1)
        ours = side.ours(new)
    theirs = side.of_theirs(new)
    if ours != theirs:
        raise SystemExit(
            f"{rows} prompts of {shots} shots: the two sides answer differently.\n{ours}\n{theirs}"
        )
    times = best(
        {
            "ours": lambda: side.ours(new),
            "theirs": lambda: side.of_theirs(new),
            "our first": lambda: side.ours(1),
            "their first": lambda: side.of_theirs(1),
            "our images": side.encoded_by_ours,
            "their images": side.encoded_by_theirs,
        },
        rounds,
        before=side.ask,
    )

    def parts(whole: str, first: str, encoded: str) -> Iterable[float]:
        yield times[encoded]
        yield times[first] - times[encoded]
        yield (times[whole] - times[first]) / (new - 1)

    columns = [
        parts("ours", "our first", "our images"),
        parts("theirs", "their first", "their images"),
    ]
    split = " ".join(
        f"{ours:7.3f} {theirs:7.3f} {theirs / ours:5.1f} |"
        for ours, theirs in zip(*columns, strict=True)
    )
    speed, their_speed = rows * new / times["ours"], rows * new / times["theirs"]
    return (
        f"{rows:4d} {shots:5d} | {split} {speed:7.1f} {their_speed:7.1f} {speed / their_speed:5.2f}"
    )


def training(pair: Pair, rows: int, rounds: int, layers: Loops) -> str:
    """Measures the training step; returns a line about it."""
    side = Training(pair, rows, layers=layers)
    ours, theirs = side.ours(), side.of_theirs()
    if not abs(ours - theirs) <= LOSSES_AGREE * theirs:
        raise SystemExit(f"The first losses differ: ours {ours}, theirs {theirs}.")
    times = best({"ours": side.ours, "theirs": side.of_theirs}, rounds)
    return (
        f"training step of {rows} pages: ours {times['ours']:.2f} s, theirs {times['theirs']:.2f} "
        f"s, ratio {times['theirs'] / times['ours']:.2f}; first loss {ours:.5f}, theirs "
        f"{theirs:.5f}"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in {"rows": "1,16", "shots": "0,4,32"}.items():
        parser.add_argument(f"--{name}", default=default)
    for name, number in {
        "tokens": 16,
        "beams": 1,
        "support": 64,
        "fixed": 1,
        "rounds": 3,
        "train": 8,
        "threads": len(os.sched_getaffinity(0)),
    }.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--layers", choices=("scanned", "unrolled"), default="unrolled")
    a = parser.parse_args()
    host_memory.keep_freed()  # as our programs do; it applies to both sides
    pair = Pair.make(a.threads)
    print(
        f"{pair.sizes}, float32, {torch.get_num_threads()} threads, {a.tokens} new tokens, beams "
        f"{a.beams}, load {os.getloadavg()[0]:.1f}"
    )
    print(
        "            |  encode images (s)   |   read prompt (s)    |  each next token (s) |   "
        "tokens per second"
    )
    print(
        "rows  shots |    ours  theirs      |    ours  theirs      |    ours  theirs      |   "
        "ours  theirs ratio"
    )
    for rows in map(int, filter(None, a.rows.split(","))):
        for shots in map(int, a.shots.split(",")):
            print(
                generation(
                    pair, rows, shots, a.tokens, rounds=a.rounds, beams=a.beams, layers=a.layers
                ),
                flush=True,
            )
    if a.support and a.rows:
        rows, shots = (max(map(int, filter(None, sizes.split(",")))) for sizes in (a.rows, a.shots))
        settings = {"beams": a.beams, "layers": a.layers, "support": a.support}
        print(f"The examples of all prompts drawn from {a.support} images:")
        print(generation(pair, rows, shots, a.tokens, rounds=a.rounds, **settings), flush=True)
    if a.fixed:
        shots = max(map(int, a.shots.split(",")))
        settings = {"beams": a.beams, "layers": a.layers, "fixed": True}
        print("One query after another about the same examples:")
        print(generation(pair, 1, shots, a.tokens, rounds=a.rounds, **settings), flush=True)
    if a.train:
        print(training(pair, a.train, a.rounds, a.layers))
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
