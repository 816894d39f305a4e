"""Converts NFNet F0-F6, as DeepMind published them, to an export of kind "vision".

    NFNet/~/nf_block_7/~/conv1/w  -->  vision/stage1/rest/conv1/w [layer]

The files F0_haiku.npz ... F6_haiku.npz are pickled trees, in spite of their names. They are
ImageNet classifiers, of which the last layer is skipped. (The contrastive encoder of the paper was
never published.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from flamingo_jax.conversion.files.pickled_tree import read_tree
from flamingo_jax.conversion.mapping import Conversion, Rule, Rules, Skip
from flamingo_jax.conversion.publishers import Inputs, check_options
from flamingo_jax.conversion.reading import ConversionError, InMemory, Weights
from flamingo_jax.core.trees import flatten
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.nfnet import NFNetConfig
from flamingo_jax.models.sizes import NFNETS

# The image size at which the accuracy of each variant was published (Brock et al. 2021, Table 1).
IMAGE_SIZES: Mapping[str, int] = {
    "F0": 256,
    "F1": 320,
    "F2": 352,
    "F3": 416,
    "F4": 512,
    "F5": 544,
    "F6": 576,
}

_LAYERS = ("conv0", "conv1", "conv1b", "conv2")
_SQUEEZE = (("linear", "squeeze"), ("linear_1", "excite"))


def conversion(inputs: Inputs) -> Conversion:
    """Returns the conversion of one published file; its number of blocks determines the variant.

    Raises:
        ConversionError: if the file is no tree of arrays, or of another model.
    """
    check_options(inputs)
    files = InMemory(flatten(read_tree(inputs.input)))
    blocks = sum(name.endswith("/skip_gain") for name in files.names())
    name = variant(blocks, str(inputs.input))
    return vision(name, NFNETS[name], rules(NFNETS[name]), files)


def variant(num_blocks: int, where: str) -> str:
    """Returns the name of the NFNet with this many blocks: 12 for F0, 24 for F1, and so on.

    Raises:
        ConversionError: if there is no such NFNet.
    """
    blocks = {name: sum(NFNETS[name].depths) for name in IMAGE_SIZES}
    for name, number in blocks.items():
        if number == num_blocks:
            return name
    expected = ", ".join(f"{name}: {number}" for name, number in blocks.items())
    raise ConversionError(
        f"{where} holds {num_blocks} blocks of an NFNet; expected {expected}. Check --source and "
        "--input."
    )


def vision(name: str, config: NFNetConfig, rules: Rules, files: Weights) -> Conversion:
    """Returns the conversion of an NFNet; images are cropped, as for its published accuracy."""
    preprocessing = {"image_size": IMAGE_SIZES[name], "image_fit": "crop", "background": "none"}
    model = ModelConfig(vision=config, new_tokens=())
    return Conversion("vision", model, rules, files, preprocessing=preprocessing)


def stages(config: NFNetConfig) -> Iterator[tuple[str, int, tuple[int, ...]]]:
    """Yields (path in the model, stage, numbers of its blocks within the stage).

    Each stage has its first block, and a stack of the other blocks.
    """
    for stage, depth in enumerate(config.depths):
        yield f"vision/stage{stage}/first", stage, (0,)
        if depth > 1:
            yield f"vision/stage{stage}/rest", stage, tuple(range(1, depth))


def rules(config: NFNetConfig) -> Rules:
    """Returns the rules of a tree's weights, "module/name"."""
    top = "NFNet/~"
    convs = [
        (f"{top}/stem_conv{i}", f"vision/stem_conv{i}") for i in range(len(config.stem_channels))
    ]
    convs.append((f"{top}/final_conv", "vision/final_conv"))
    found = [
        Rule(f"{source}/{name}", f"{target}/{name}")
        for source, target in convs
        for name in ("w", "gain", "bias")
    ]
    for target, stage, numbers in stages(config):
        before = sum(config.depths[:stage])
        layers: tuple[int, ...] | None
        if numbers == (0,):
            block, layers = f"{top}/nf_block_{before}" if before else f"{top}/nf_block", None
        else:
            block, layers = f"{top}/nf_block_{{layer}}", tuple(before + n for n in numbers)
        names = {
            f"{layer}/{name}": f"~/{layer}/{name}"
            for layer in _LAYERS
            for name in ("w", "gain", "bias")
        }
        names |= {
            f"{ours}/{name}": f"~/squeeze_excite/~/{theirs}/{name}"
            for theirs, ours in _SQUEEZE
            for name in ("w", "b")
        }
        names["skip/gain"] = "skip_gain"
        if layers is None:
            names |= {
                f"shortcut/{name}": f"~/conv_shortcut/{name}" for name in ("w", "gain", "bias")
            }
        found += [
            Rule(f"{block}/{theirs}", f"{target}/{ours}", layers=layers)
            for ours, theirs in names.items()
        ]
    return (*found, Skip(f"{top}/linear/[wb]", "the classifier of ImageNet"))
