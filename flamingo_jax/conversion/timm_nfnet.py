"""Converts timm's dm_nfnet_f0 ... f6 to a "vision" export that computes the same as timm.

    stages.1.2.conv2.weight [O I kh kw]  -->  vision/stage1/rest/conv1/w [layer, kh kw I O]

The file is a state dict: *.pth, *.bin or *.safetensors. timm differs in two points from the code
that trained its weights. It computes GELU exactly instead of by tanh (option `activation`). And it
divides a convolution's weights by sqrt(var + 1e-5), which the conversion includes in their gains.
For DeepMind's own function convert DeepMind's files (nfnet_deepmind).
"""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from flamingo_jax.conversion.mapping import Conversion, Rule, Rules, Skip
from flamingo_jax.conversion.nfnet_deepmind import stages, variant, vision
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import open_weights
from flamingo_jax.conversion.transforms import conv, flat, transpose
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.sizes import NFNETS
from flamingo_jax.nn.conv import SMALLEST_VARIANCE

EPSILON = 1e-5  # timm adds it to the variance of a convolution's weights

_LAYERS = {"conv1": "conv0", "conv2": "conv1", "conv2b": "conv1b", "conv3": "conv2"}
_SQUEEZE = {"attn_last.fc1": "squeeze", "attn_last.fc2": "excite"}


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of a state dict; its number of blocks determines the variant.

    Raises:
        ConversionError: if the file is damaged, or of another model.
    """
    check_options(inputs)
    files = open_weights(inputs.input)
    blocks = sum(
        re.fullmatch(r"stages\.\d+\.\d+\.skipinit_gain", name) is not None for name in files.names()
    )
    name = variant(blocks, str(inputs.input))
    config = dataclasses.replace(NFNETS[name], activation="gelu_exact")
    return vision(name, config, rules(config), files)


def rules(config: NFNetConfig) -> Rules:
    """Returns the rules of a state dict's weights."""
    found: list[Rule | Skip] = []
    for i in range(len(config.stem_channels)):
        found += _conv(f"stem.conv{i + 1}", f"vision/stem_conv{i}")
    found += _conv("final_conv", "vision/final_conv")
    for target, stage, numbers in stages(config):
        is_first = numbers == (0,)
        block = f"stages.{stage}.0" if is_first else f"stages.{stage}.{{layer}}"
        layers = None if is_first else numbers
        convs = _LAYERS | ({"downsample.conv": "shortcut"} if is_first else {})
        for theirs, ours in convs.items():
            found += _conv(f"{block}.{theirs}", f"{target}/{ours}", layers)
        for theirs, ours in _SQUEEZE.items():  # 1x1 convolutions [out, in, 1, 1]
            found.append(Rule(f"{block}.{theirs}.weight", f"{target}/{ours}/w", _as_linear, layers))
            found.append(Rule(f"{block}.{theirs}.bias", f"{target}/{ours}/b", layers=layers))
        found.append(Rule(f"{block}.skipinit_gain", f"{target}/skip/gain", layers=layers))
    return (*found, Skip(r"head\.fc\.(weight|bias)", "the classifier of ImageNet"))


def _conv(source: str, target: str, layers: tuple[int, ...] | None = None) -> list[Rule]:
    return [
        Rule(f"{source}.weight", f"{target}/w", conv, layers),
        Rule((f"{source}.weight", f"{source}.gain"), f"{target}/gain", _gain, layers),
        Rule(f"{source}.bias", f"{target}/bias", layers=layers),
    ]


def _as_linear(x: np.ndarray) -> np.ndarray:
    return transpose(x[:, :, 0, 0])


def _gain(w: np.ndarray, gain: np.ndarray) -> np.ndarray:
    """Returns gains with which `nn.conv.standardise_weights` computes timm's weights.

    They differ from timm's gains where the variance is small.
    """
    fan_in = w[0].size
    variance = w.reshape(len(w), -1).astype(np.float64).var(axis=1)
    ratio = np.maximum(variance * fan_in, SMALLEST_VARIANCE) / ((variance + EPSILON) * fan_in)
    return (flat(gain) * np.sqrt(ratio)).astype(np.float32)
