r"""Measures tokens per second with and without a cache, and the cost of a token by shots.

    python -m tests.benchmarks.decoding [--layers=8] [--width=512] [--tokens=16] [--rounds=3]
        [--part=all]

The model is a Flamingo with random weights: an LM with a cross-attention layer before every second
block, 64 latents per image, one image and 24 tokens of text per shot. Only the compiled loop is
timed, with encoded images; the best of the rounds counts. The uncached forward is ours: it reads
the whole prompt again for each token. FLOPs are the compiler's count (`cost_analysis`) for one step
of the model with one layer, since it counts the body of a loop over layers once.

The part "prefix" measures whole calls of `inference.engine` with and without the prefix cache, in
turns: 32 shots, of which all queries share the examples, one prompt at a time and 16 together. The
query's image differs in each call. A call with the cache takes the examples from an earlier call;
"cold" also reads them once. Both give the same tokens.
"""

import argparse
import dataclasses
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.inference import decode
from flamingo_jax.inference.cache_of_prefixes import PrefixCache
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.engine import Engine
from flamingo_jax.inference.prompt import TokenisedPrompt
from flamingo_jax.inference.request import Request
from flamingo_jax.models import api, flamingo
from flamingo_jax.models.cache import Cache, Media
from flamingo_jax.models.gated_xattn import XattnConfig
from flamingo_jax.models.lm import LMConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.resampler import ResamplerConfig

TEXT = 24  # tokens of a shot
NEVER = (-1,)  # no token ends an answer: every row decodes all its tokens


@dataclasses.dataclass(frozen=True)
class Size:
    """A model for measuring: layers and width of the LM, latents of an image, the vocabulary."""

    layers: int = 8
    width: int = 512
    latents: int = 64
    vocabulary: int = 8000

    def build(self) -> tuple[api.Model, Any]:
        """Returns the model and its weights, in float32."""
        heads = max(self.width // 64, 2)
        config = flamingo.FlamingoConfig(
            vision=NFNetConfig(
                stem_channels=(8,),
                stem_strides=(2,),
                widths=(8,),
                depths=(1,),
                strides=(2,),
                group_width=8,
            ),
            resampler=ResamplerConfig(
                num_layers=1, width=16, num_heads=2, head_dim=8, num_latents=self.latents
            ),
            lm=LMConfig(self.vocabulary, num_layers=self.layers, width=self.width, num_heads=heads),
            xattn=XattnConfig(every=min(2, self.layers)),
        )
        model = api.flamingo(config)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        rng = np.random.default_rng(0)
        return model, jax.tree.map(
            lambda x: jnp.asarray(0.02 * rng.normal(size=x.shape), jnp.float32), shapes
        )

    def prompts(self, rows: int, shots: int) -> tuple[Any, ...]:
        """Returns (tokens, length, phi, media) of prompts with `shots` examples and a query."""
        rng = np.random.default_rng(rows + shots)
        images = shots + 1
        tokens = rng.integers(4, self.vocabulary, (rows, images * TEXT)).astype(np.int32)
        phi = np.broadcast_to(
            np.repeat(np.arange(1, images + 1, dtype=np.int32), TEXT), tokens.shape
        )
        pool = jnp.asarray(rng.normal(size=(images, self.latents, self.width)), jnp.float32)
        slot = np.broadcast_to(np.arange(images, dtype=np.int32), (rows, images))
        length = np.full(rows, tokens.shape[1], np.int32)
        return (*map(jnp.asarray, (tokens, length, phi)), Media(pool, jnp.asarray(slot)))


def reader(model: api.Model, tokens: int) -> Any:
    """Returns the compiled prefill, (weights, prompts) -> prefix with room for `tokens` more."""

    def read(params: Any, prompt: Any) -> decode.Prefix:
        rows, length = prompt[0].shape
        cache = model.empty_cache(rows, length + tokens, jnp.float32, params)
        return decode.prefill(functools.partial(model.extend, params), cache, *prompt)

    return jax.jit(read)


def cached(model: api.Model, tokens: int) -> Any:
    """Returns the compiled function (weights, prefix) -> tokens, with `tokens` cached steps.

    The prefix gives the first token.
    """

    def answer(params: Any, prefix: decode.Prefix) -> Any:
        extend = functools.partial(model.extend, params)
        return decode.greedy(
            extend, prefix, max_new_tokens=tokens + 1, stop=NEVER, pad_id=0
        ).tokens[:, 0]

    return jax.jit(answer)


def uncached(model: api.Model, tokens: int) -> Any:
    """Returns the same by forwards of the whole sequence, one for each token.

    Nothing is kept from one to the next.
    """

    def answer(params: Any, prompt: Any) -> Any:
        text, _, phi, media = prompt
        rows, length = text.shape
        text = jnp.pad(text, ((0, 0), (0, tokens)))
        phi = jnp.pad(phi, ((0, 0), (0, tokens)), mode="edge")
        positions = jnp.broadcast_to(jnp.arange(length + tokens, dtype=jnp.int32)[None], text.shape)

        def step(t: Any, text: Any) -> Any:
            empty = model.empty_cache(rows, length + tokens, jnp.float32)
            logits, _ = model.extend(params, empty, text, positions, phi, media)
            last = jax.lax.dynamic_slice_in_dim(logits, length + t - 1, 1, axis=1)
            return jax.lax.dynamic_update_slice_in_dim(
                text, jnp.argmax(last, -1).astype(jnp.int32), length + t, axis=1
            )

        return jax.lax.fori_loop(0, tokens, step, text)[:, length:]

    return jax.jit(answer)


def step_flops(size: Size, positions: int, *, rows: int = 1) -> float:
    """Returns the compiled FLOPs of decoding one token after `positions`.

    Nothing of the prompt but its length is in its shapes.
    """
    model, params = size.build()
    one = jnp.ones((rows, 1), jnp.int32)
    return _extend_flops(
        model, params, model.empty_cache(rows, positions, jnp.float32, params), one, one, one
    )


def forward_flops(size: Size, shots: int, *, rows: int = 1) -> float:
    """Returns the compiled FLOPs of reading a whole prompt.

    What each token costs without a cache.
    """
    model, params = size.build()
    text, _, phi, media = size.prompts(rows, shots)
    return _extend_flops(
        model, params, model.empty_cache(*text.shape, jnp.float32), text, text, phi, media
    )


def _extend_flops(model: api.Model, params: Any, cache: Cache, *arguments: Any) -> float:
    def extend(params: Any, parts: Any, *arguments: Any) -> Any:
        return model.extend(params, Cache(**parts), *arguments)

    return flops(
        jax.jit(extend).lower(
            params, {"lm": cache.lm, "media": cache.media, "shared": cache.shared}, *arguments
        )
    )


def flops(lowered: Any) -> float:
    """Returns what the compiler counts."""
    return float(lowered.compile().cost_analysis()["flops"])


def seconds(functions: dict[str, Any], *arguments: Any, rounds: int) -> dict[str, float]:
    """Returns the best time of each function.

    They are run in turn, after a first call that compiles.
    """
    best = dict.fromkeys(functions, float("inf"))
    for turn in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def prefix_cache(size: Size, rows: int, shots: int, tokens: int, rounds: int) -> str:
    """Measures calls that share their examples; returns a line of the table."""
    model, params = size.build()
    lengths = (32, -(-(shots + 1) * TEXT // 64) * 64)
    config = InferenceConfig(
        max_new_tokens=tokens, layers="unrolled", lengths=lengths, num_images=(shots + 1,)
    )
    engines = {
        name: Engine(
            model, params, image_size=16, stop=(size.vocabulary,), pad_id=0,
            config=dataclasses.replace(config, prefix_megabytes=megabytes),
        ) for name, megabytes in (("with", 1024), ("without", 0))
    }  # fmt: skip
    rng = np.random.default_rng(rows)
    text = rng.integers(4, size.vocabulary, (shots + 1) * TEXT).astype(np.int32)
    text[TEXT - 1 :: TEXT] = size.vocabulary  # <EOC>
    phi = np.repeat(np.arange(1, shots + 2, dtype=np.int32), TEXT)
    image = lambda: rng.integers(0, 256, (16, 16, 3), np.uint8)
    examples = [image() for _ in range(shots)]

    def requests() -> list[Request]:
        queries = rng.integers(4, size.vocabulary, (rows, TEXT - 1))
        whole = [np.concatenate([text[: shots * TEXT], query]) for query in queries]
        return [
            Request(TokenisedPrompt(each.astype(np.int32), phi[:-1], (*examples, image())))
            for each in whole
        ]

    def answer(name: str, asked: list[Request]) -> tuple[float, list[Any]]:
        start = time.perf_counter()
        found = engines[name].answer(asked, batch_size=rows, across_calls=True)
        return time.perf_counter() - start, [each.tokens for each in found]

    times: dict[str, list[float]] = {"with": [], "without": [], "cold": []}
    for turn in range(rounds + 2):  # two to compile
        asked = requests()
        engines["with"]._prefixes = PrefixCache(megabytes=1024)
        cold = answer("with", asked)
        asked = requests()
        found = {name: answer(name, asked) for name in engines}
        if found["with"][1] != found["without"][1]:
            raise SystemExit("The prefix cache changes an answer.")
        if turn > 1:
            times["cold"].append(cold[0])
            for name, (seconds, _) in found.items():
                times[name].append(seconds)
    best = {name: min(each) for name, each in times.items()}
    return (
        f"{rows:4d} {shots:5d} | {best['without']:9.3f} {best['with']:9.3f} {best['cold']:9.3f} | "
        f"{best['without'] / best['with']:5.2f} {best['without'] / best['cold']:5.2f}"
    )


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (("layers", 8), ("width", 512), ("tokens", 16), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--part", choices=("all", "cache", "prefix"), default="all")
    arguments = parser.parse_args()
    size, tokens = Size(arguments.layers, arguments.width), arguments.tokens
    print(
        f"LM {size.layers} x {size.width}, {tokens} new tokens, {jax.devices()[0].platform}, "
        "float32"
    )
    if arguments.part != "cache":
        print("rows shots | whole s   shared s  cold s    | times as fast: shared, cold")
        for rows in (1, 16):
            print(prefix_cache(size, rows, 32, tokens, arguments.rounds), flush=True)
    if arguments.part != "prefix":
        steps(size, tokens, arguments.rounds)


def steps(size: Size, tokens: int, rounds: int) -> None:
    """Measures the compiled loop with and without a cache, and counts FLOPs; prints both."""
    model, params = size.build()
    print("rows shots prompt | prefill s   s/step | cached tok/s uncached ratio")
    few = max(tokens // 8, 2)  # of the uncached forward: each of its tokens costs the same
    for rows in (1, 16):
        for shots in (0, 4, 32):
            prompt = size.prompts(rows, shots)
            read, step = reader(model, tokens + 1), cached(model, tokens)
            prefill = seconds({"read": read}, params, prompt, rounds=rounds)["read"]
            fast = seconds({"step": step}, params, read(params, prompt), rounds=rounds)["step"]
            slow = seconds({"all": uncached(model, few)}, params, prompt, rounds=1)["all"] / few
            # the prefill counts: it is what the cache is filled with
            speed = rows * tokens / (prefill + fast)
            print(
                f"{rows:4d} {shots:5d} {prompt[0].shape[1]:6d} | {prefill:9.3f} "
                f"{fast / tokens:8.5f} | {speed:12.1f} {rows / slow:8.2f} "
                f"{speed * slow / rows:5.1f}",
                flush=True,
            )
    one = dataclasses.replace(size, layers=1)
    print("FLOPs of one decoded token (one layer), and of the forward that it replaces:")
    for shots in (0, 4, 32):
        length = (shots + 1) * TEXT + tokens
        print(
            f"{shots:5d} shots: {step_flops(one, length):.4g}, uncached "
            f"{forward_flops(one, shots):.4g}",
            flush=True,
        )
    print(
        f"32 shots' images and {TEXT} tokens of text: {step_flops(one, TEXT + tokens):.4g}, as "
        "for 0 shots"
    )


if __name__ == "__main__":
    main()
