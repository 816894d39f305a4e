r"""Measures the scoring of C candidates.

It compares one prefill and C short continuations with a forward of the whole prompt for each.

    python -m tests.benchmarks.scoring [--layers=8] [--width=512] [--shots=4] [--length=4]
        [--rounds=3]

The model and the prompts are those of `tests.benchmarks.decoding`. FLOPs are the compiler's, of the
model with one layer and one pass of candidates.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from flamingo_jax.inference import decode, score
from flamingo_jax.models import api
from tests.benchmarks.decoding import Size, flops, seconds


def shared(model: api.Model, *, per_pass: int) -> Any:
    """Returns the package's function (weights, prompt, candidates[1, C, T]) -> scores[1, C]."""

    def scores(params: Any, prompt: Any, candidates: Any) -> Any:
        extend = functools.partial(model.extend, params)
        length = prompt[0].shape[1]
        cache = model.empty_cache(1, length + candidates.shape[2], jnp.float32, params)
        prefix = decode.prefill(extend, cache, *prompt)
        sizes = jnp.full(candidates.shape[:2], candidates.shape[2], jnp.int32)
        return score.score(extend, prefix, candidates, sizes, per_pass=per_pass)

    return scores


def apart(model: api.Model) -> Any:
    """Returns the same function by a forward of prompt and candidate for each candidate."""

    def scores(params: Any, prompt: Any, candidates: Any) -> Any:
        text, _, phi, media = prompt
        length, width = text.shape[1], candidates.shape[2]
        phi = jnp.pad(phi, ((0, 0), (0, width)), mode="edge")
        positions = jnp.arange(length + width, dtype=jnp.int32)[None]

        def one(candidate: Any) -> Any:
            cache = model.empty_cache(1, length + width, jnp.float32)
            whole = jnp.concatenate([text, candidate[None]], axis=1)
            logits, _ = model.extend(params, cache, whole, positions, phi, media)
            log_probs = jax.nn.log_softmax(logits[0, length - 1 : -1])
            return jnp.sum(jnp.take_along_axis(log_probs, candidate[:, None], axis=1))

        return jax.lax.map(one, candidates[0])[None]

    return scores


def candidates(size: Size, count: int, length: int) -> Any:
    """Returns random candidates int32[1, C, T]."""
    return jnp.asarray(
        np.random.default_rng(count).integers(4, size.vocabulary, (1, count, length)), jnp.int32
    )


def score_flops(size: Size, *, shots: int, count: int, length: int) -> float:
    """Returns the compiled FLOPs of scoring `count` candidates after one prompt, in one pass."""
    model, params = size.build()
    function = jax.jit(shared(model, per_pass=count))
    return flops(function.lower(params, size.prompts(1, shots), candidates(size, count, length)))


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in (
        ("layers", 8),
        ("width", 512),
        ("shots", 4),
        ("length", 4),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    size, shots, length = Size(arguments.layers, arguments.width), arguments.shots, arguments.length
    model, params = size.build()
    prompt = size.prompts(1, shots)
    one = dataclasses.replace(size, layers=1)
    # a single token needs no continuation
    prefill = score_flops(one, shots=shots, count=1, length=1)
    print(
        f"LM {size.layers} x {size.width}, {shots} shots ({prompt[0].shape[1]} tokens), candidates "
        f"of {length} tokens"
    )
    print(
        f"{'C':>4} | {'shared s':>9} {'apart s':>9} {'ratio':>6} | FLOPs of one layer: "
        f"{'in prefills':>11} {'a candidate':>11}"
    )
    for count in (1, 4, 16, 64):
        ways = {"shared": jax.jit(shared(model, per_pass=16)), "apart": jax.jit(apart(model))}
        given = candidates(size, count, length)
        np.testing.assert_allclose(
            *(way(params, prompt, given) for way in ways.values()), rtol=1e-4
        )
        times = seconds(ways, params, prompt, given, rounds=arguments.rounds)
        total = score_flops(one, shots=shots, count=count, length=length)
        print(
            f"{count:4d} | {times['shared']:9.4f} {times['apart']:9.4f} "
            f"{times['apart'] / times['shared']:6.1f} |{'':20}{total / prefill:12.2f} "
            f"{(total - prefill) / count / prefill:11.4f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
