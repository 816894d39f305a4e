"""Counts the FLOPs of the matmuls and convolutions of compiled HLO.

Each multiplication of two elements counts as two. The TPU compiler turns batched matmuls into
convolutions with windows that are mostly in the padding. Therefore positions are counted one by
one: an element of the kernel over padding, or over a hole of a dilated input, multiplies nothing.
"""

from __future__ import annotations

import functools
import math
import re

import numpy as np

from flamingo_jax.planning.hlo import Computation, Instruction, leaves

_WINDOW_FIELD = re.compile(r"(\w+)=([\dx_\-]+)")


def flops(computation: Computation, instruction: Instruction) -> int:
    """Returns the FLOPs of one instruction on one device; 0 if it is no matmul or convolution."""
    if instruction.opcode == "dot":
        return _dot(computation, instruction)
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    return 0


def _shape(computation: Computation, name: str) -> tuple[int, ...]:
    return leaves(computation.instructions[name].type)[0][1]


def _dot(computation: Computation, instruction: Instruction) -> int:
    left = _shape(computation, instruction.operands[0])
    contracted = [int(i) for i in re.findall(r"\d+", instruction.attribute("lhs_contracting_dims"))]
    result = leaves(instruction.type)[0][1]
    return 2 * math.prod(result) * math.prod(left[i] for i in contracted)


def _convolution(computation: Computation, instruction: Instruction) -> int:
    left, right = (_shape(computation, name) for name in instruction.operands[:2])
    result = leaves(instruction.type)[0][1]
    inputs, rest = instruction.attribute("dim_labels").split("_")
    kernel, outputs = rest.split("->")
    # `window={size=3x3 pad=1_1x1_1 rhs_reversal=1x1}`; a convolution without window is a matmul.
    fields = dict(_WINDOW_FIELD.findall(instruction.attribute("window")))
    dimensions = len(inputs) - 2

    def each(name: str, default: str) -> list[str]:
        return fields[name].split("x") if name in fields else [default] * dimensions

    groups = int(instruction.attribute("feature_group_count") or 1)
    batch_groups = int(instruction.attribute("batch_group_count") or 1)
    products = (left[inputs.index("b")] // batch_groups) * (left[inputs.index("f")] // groups)
    products *= right[kernel.index("o")]
    settings = zip(*(each(name, default) for name, default in _DEFAULTS), strict=True)
    for i, (stride, pad, left_dilation, right_dilation) in enumerate(settings):
        low = int(re.match(r"-?\d+", pad)[0])  # type: ignore[index]
        products *= _places(
            left[inputs.index(str(i))],
            right[kernel.index(str(i))],
            result[outputs.index(str(i))],
            int(stride),
            low,
            int(left_dilation),
            int(right_dilation),
        )
    return 2 * products


_DEFAULTS = (("stride", "1"), ("pad", "0_0"), ("lhs_dilate", "1"), ("rhs_dilate", "1"))


@functools.cache
def _places(
    size: int, kernel: int, result: int, stride: int, low: int, input_step: int, kernel_step: int
) -> int:
    """Returns the number of (output element, kernel element) with an input element.

    All three are along one dimension.
    """
    if size == kernel == result == 1:
        return 1
    at = (np.arange(result) * stride - low)[:, None] + (np.arange(kernel) * kernel_step)[None, :]
    return int(((at >= 0) & (at <= (size - 1) * input_step) & (at % input_step == 0)).sum())
