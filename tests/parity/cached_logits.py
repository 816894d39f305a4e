"""Our logits with the cache of keys and values: whole sequences, or one token after the other."""

import jax
import jax.numpy as jnp

from flamingo_jax.models.cache import Media


def program(model, batch, images, *, prefix=0):
    """Returns the compiled function (params, tokens, phi, frames, mask) -> logits [B T V].

    Args:
        model: Flamingo.
        batch: B, rows.
        images: of each row; `frames` and `mask` have them row by row.
        prefix: tokens that are read at once, as those of a prompt are; those after them come one by
            one, as in decoding. 0 = all are read at once.
    """
    slot = jnp.arange(batch * images, dtype=jnp.int32).reshape(batch, images)

    @jax.jit
    def run(params, tokens, phi, frames, mask):
        pool = model.encode(params, frames, mask)
        cache = model.empty_cache(batch, tokens.shape[1], jnp.float32, params)
        positions = jnp.broadcast_to(
            jnp.arange(tokens.shape[1], dtype=jnp.int32)[None], tokens.shape
        )
        first = slice(0, prefix or tokens.shape[1])
        logits, cache = model.extend(
            params, cache, tokens[:, first], positions[:, first], phi[:, first], Media(pool, slot)
        )
        if first.stop == tokens.shape[1]:
            return logits

        def one(cache, now):
            out, cache = model.extend(params, cache, *(x[:, None] for x in now))
            return cache, out[:, 0]

        rest = tuple(x[:, first.stop :].T for x in (tokens, positions, phi))
        _, later = jax.lax.scan(one, cache, rest)
        return jnp.concatenate([logits, later.swapaxes(0, 1)], axis=1)

    return run
