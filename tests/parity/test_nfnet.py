"""NFNet against timm's dm_nfnet, stage by stage, and both importers.

Random weights with nothing at its initial value.
"""

import dataclasses

import haiku as hk
import jax
import numpy as np
import pytest

from flamingo_jax.conversion import mapping, nfnet_deepmind, timm_nfnet
from flamingo_jax.conversion.mapping import load_params
from flamingo_jax.conversion.publishers import Inputs, describe
from flamingo_jax.conversion.reading import InMemory
from flamingo_jax.core import trees
from flamingo_jax.core.paths import Path
from flamingo_jax.models import nfnet
from flamingo_jax.models.config import ModelConfig
from flamingo_jax.models.nfnet import NFNet, NFNetConfig
from flamingo_jax.models.sizes import NFNETS
from tests.parity import stand_ins

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.parity

# All parts of F0 - F6, narrow: groups, big width, squeeze-and-excite, first blocks with and without
# stride, stacked blocks.
SMALL = NFNetConfig(
    widths=(32, 64, 96, 96),
    depths=(2, 1, 3, 2),
    stem_channels=(2, 4, 8, 16),
    group_width=16,
    activation="gelu_exact",
)
# of the largest value of a stage: float32 sums of up to 14,000 products, in another order, over 12
# blocks
RTOL = 1e-4


@pytest.fixture(scope="module")
def timm():
    torch.set_num_threads(1)
    return stand_ins.load("timm.models.nfnet")


@pytest.fixture(scope="module")
def small(timm):
    config = dataclasses.replace(
        timm.model_cfgs["dm_nfnet_f0"],
        depths=SMALL.depths,
        channels=SMALL.widths,
        stem_chs=SMALL.stem_channels[-1],
        group_size=SMALL.group_width,
        num_features=SMALL.width,
    )
    return _randomised(timm.NormFreeNet(config))


def _randomised(model):
    """Gains with which each branch matters, and weights so small that timm's epsilon matters."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if name.endswith("gain"):
                weight.copy_((0.8 if name.endswith("skipinit_gain") else 1.0) + 0.2 * noise)
            else:
                weight.copy_(noise * (0.1 if weight.ndim == 1 else weight[0].numel() ** -0.5))
        model.stem.conv2.weight.mul_(0.1)
        model.stages[1][0].conv3.weight.mul_(30.0)
    return model.eval()


def _arrays(model):
    return InMemory({name: weight.detach().numpy() for name, weight in model.state_dict().items()})


def _theirs(model, images):
    outputs = []
    hooks = [
        stage.register_forward_hook(lambda *call: outputs.append(call[-1]))
        for stage in (model.stem, *model.stages)
    ]
    with torch.no_grad():
        outputs.append(model.forward_features(torch.tensor(images.transpose(0, 3, 1, 2))))
    for hook in hooks:
        hook.remove()
    return [output.numpy().transpose(0, 2, 3, 1) for output in outputs]


def _ours(config, params, images, monkeypatch):
    """Returns the stem's output, each stage's and the features."""
    seen = []
    stage = nfnet._stage

    def watched(x, *args, **kwargs):
        seen.extend([x] if not seen else [])
        seen.append(stage(x, *args, **kwargs))
        return seen[-1]

    monkeypatch.setattr(nfnet, "_stage", watched)

    def run(x):
        seen.clear()
        return NFNet(config)(x), tuple(seen)

    network = hk.without_apply_rng(hk.transform(run))
    features, stages = jax.jit(network.apply)(params, images)
    return [*stages, features]


def _compare(ours, theirs):
    assert len(ours) == len(theirs) == 6
    for mine, others in zip(ours, theirs, strict=True):
        assert mine.shape == others.shape
        assert np.abs(others).max() > 0.1
        np.testing.assert_allclose(mine, others, rtol=0, atol=RTOL * np.abs(others).max())


def _images(size):
    return np.random.default_rng(1).normal(size=(2, size, size, 3)).astype(np.float32)


def _conversion(config, model):
    return mapping.Conversion(
        "vision", ModelConfig(vision=config), timm_nfnet.rules(config), _arrays(model)
    )


@pytest.mark.parametrize("size", [64, 72])  # 72: grids of 18, 9, 5 and 3, where padding is not even
def test_every_stage_equals_timms(small, size, monkeypatch):
    images = _images(size)
    params = load_params(_conversion(SMALL, small))
    _compare(_ours(SMALL, params, images, monkeypatch), _theirs(small, images))


def test_timms_epsilon_and_gelu_are_carried_over(small, monkeypatch):
    """Each of the two alone would break the parity: so the tests above see them."""
    images = _images(64)
    params = load_params(_conversion(SMALL, small))
    theirs = _theirs(small, images)[-1]
    raw = dict(trees.flatten(params))
    for name in raw:
        if name.startswith("vision/stem") and name.endswith("/gain"):
            raw[name] = small.state_dict()[f"stem.conv{int(name[16]) + 1}.gain"].numpy().reshape(-1)
    tanh = dataclasses.replace(SMALL, activation="gelu")
    for config, weights in ((SMALL, trees.unflatten(raw)), (tanh, params)):
        ours = _ours(config, weights, images, monkeypatch)[-1]
        assert np.abs(ours - theirs).max() > 3 * RTOL * np.abs(theirs).max()


def test_f0_as_published_by_timm(timm, tmp_path, monkeypatch):
    """The real F0, through a file: 68,416,284 weights without the classifier."""
    model = _randomised(timm.dm_nfnet_f0(device="meta").to_empty(device="cpu"))
    torch.save(model.state_dict(), tmp_path / "dm_nfnet_f0.pth")
    conversion = describe("timm_nfnet", Inputs(Path(tmp_path / "dm_nfnet_f0.pth")))
    assert conversion.kind == "vision"
    assert conversion.preprocessing == {
        "image_size": 256,
        "image_fit": "crop",
        "background": "none",
    }
    assert conversion.model.vision == dataclasses.replace(NFNETS["F0"], activation="gelu_exact")
    params, images = load_params(conversion), _images(96)
    assert trees.count(params) == 68_416_284
    _compare(_ours(conversion.model.vision, params, images, monkeypatch), _theirs(model, images))


@pytest.mark.parametrize("name", ["F1", "F6"])
def test_timms_larger_models_have_the_weights_that_the_mapping_reads(timm, name):
    model = getattr(timm, f"dm_nfnet_{name.lower()}")(device="meta")
    sources = {
        key: jax.ShapeDtypeStruct(tuple(w.shape), np.float32)
        for key, w in model.state_dict().items()
    }
    targets = mapping.targets("vision", ModelConfig(vision=NFNETS[name]))
    plan = mapping.check(timm_nfnet.rules(NFNETS[name]), sources, targets)
    assert set(plan.skipped) == {"head.fc.weight", "head.fc.bias"}


def _deepminds(model, copy=np.ascontiguousarray):
    """The same weights named and laid out as in DeepMind's files (their Haiku modules)."""
    tree = {}

    def conv(name, layer):
        w, gain, bias = (
            layer.get_parameter(key).detach().numpy() for key in ("weight", "gain", "bias")
        )
        tree[name] = {"w": copy(w.transpose(2, 3, 1, 0)), "gain": gain.reshape(-1), "bias": bias}

    def linear(name, layer):
        w, bias = (layer.get_parameter(key).detach().numpy() for key in ("weight", "bias"))
        tree[name] = {"w": copy(w.reshape(w.shape[:2]).T), "b": bias}

    for i in range(4):
        conv(f"NFNet/~/stem_conv{i}", model.stem[2 * i])
    for i, block in enumerate(block for stage in model.stages for block in stage):
        name = f"NFNet/~/nf_block_{i}" if i else "NFNet/~/nf_block"
        tree[name] = {"skip_gain": block.skipinit_gain.detach().numpy()}
        layers = {
            "conv0": block.conv1,
            "conv1": block.conv2,
            "conv1b": block.conv2b,
            "conv2": block.conv3,
        }
        for key, layer in layers.items():
            conv(f"{name}/~/{key}", layer)
        if block.downsample is not None:
            conv(f"{name}/~/conv_shortcut", block.downsample.conv)
        linear(f"{name}/~/squeeze_excite/~/linear", block.attn_last.fc1)
        linear(f"{name}/~/squeeze_excite/~/linear_1", block.attn_last.fc2)
    conv("NFNet/~/final_conv", model.final_conv)
    linear("NFNet/~/linear", model.head.fc)
    return tree


def test_deepminds_layout_gives_the_same_network(small, monkeypatch):
    """Where variances are of the order of 1, timm's epsilon is next to nothing.

    Both importers give one function.
    """
    tree = _deepminds(small)
    for weights in tree.values():
        if "gain" in weights:
            weights["w"] = weights["w"] / weights["w"].std()
    with torch.no_grad():
        for layer in small.modules():
            if hasattr(layer, "gain"):
                layer.weight.div_(layer.weight.std(correction=0))
    conversion = mapping.Conversion(
        "vision",
        ModelConfig(vision=SMALL),
        nfnet_deepmind.rules(SMALL),
        InMemory(trees.flatten(tree)),
    )
    images = _images(64)
    _compare(_ours(SMALL, load_params(conversion), images, monkeypatch), _theirs(small, images))


@pytest.mark.parametrize(("name", "num_modules"), [("F0", 94), ("F6", 598)])
def test_deepminds_trees_are_recognised_and_read_whole(timm, name, num_modules, monkeypatch):
    """The published trees have so many modules; their shapes alone, through the importer."""
    model = getattr(timm, f"dm_nfnet_{name.lower()}")(device="meta")
    for key, weight in list(model.named_parameters()):
        module, _, own = key.rpartition(".")
        shape = torch.zeros(()).expand(weight.shape)  # takes no memory
        setattr(model.get_submodule(module), own, torch.nn.Parameter(shape))
    tree = _deepminds(model, copy=lambda x: x)
    assert len(tree) == num_modules
    monkeypatch.setattr(nfnet_deepmind, "read_tree", lambda path: tree)
    conversion = describe("nfnet_deepmind", Inputs(Path("F_haiku.npz")))
    assert conversion.model == ModelConfig(vision=NFNETS[name], new_tokens=())
    plan = mapping.plan(conversion)
    assert (
        sum(weight.size for weight in plan.weights) == {"F0": 68_416_284, "F6": 435_286_116}[name]
    )
    assert set(plan.skipped) == {"NFNet/~/linear/w", "NFNet/~/linear/b"}
