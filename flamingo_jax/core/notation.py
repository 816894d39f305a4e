"""The letters of dimensions, the same in types, einsums and comments.

    B batch            L text tokens             S attended-to length (keys)
    T tokens fed at once (prefill, decoding)     V vocabulary
    M pool of visual inputs                      N visual inputs of a sequence
    F frames           P patches (h*w)           R latents
    D LM width         E vision width            W resampler width  X new tokens, such as <EOC>
    H heads            G key/value heads         K head size        J joint space

T is also L - 1, the number of tokens that are predicted.

Types are jaxtyping's: `Float[Array, "B L D"]`. The tests check them at run time. Mesh axes
(replica, data, model) and logical axes (batch, embed, heads, ...) are words: see `core.axes`.
"""

from jaxtyping import Array, Bool, Float, Float32, Int, PRNGKeyArray, UInt8

__all__ = ["Array", "Bool", "Float", "Float32", "Int", "PRNGKeyArray", "UInt8"]
