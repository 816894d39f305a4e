"""Models of other publishers are converted, evaluated, prompted, trained further, and written back.

The models are small and random, in their publishers' file formats. The records are those of a small
world. Each program is run once from the command line.
"""

import json

import jax
import numpy as np
import PIL.Image
import pytest

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.conversion import nfnet_deepmind, publishers, writing
from flamingo_jax.core import trees
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import Path
from flamingo_jax.inference.model import Flamingo, InferenceConfig
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from flamingo_jax.training import logs
from flamingo_jax.training import run as run_lib
from flamingo_jax.training.config import TrainConfig
from tests.conversion import test_convert as nfnet
from tests.conversion import test_hf_lm as hf_lm
from tests.e2e import imported
from tests.e2e.test_public_weights import idefics_directory  # noqa: F401 (a fixture)
from tests.evaluation.fixtures import benchmarks
from tests.inference import tiny
from tests.parity import open_flamingo_models
from tests.training import small

pytestmark = pytest.mark.parity

ONE = jax.devices()[:1]
CONFIG = InferenceConfig(
    lengths=(64,),
    num_images=(2,),
    images_per_pass=4,
    max_new_tokens=4,
    xattn_chunk=0,
    compute="float32",
)
FAMILY, EVERY = "gpt_neox", 2  # its head is not tied, so it can be written back


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small.make_world(tmp_path_factory.mktemp("world"))


def config_of(*parts, **changes):
    described = imported.get_config(",".join(map(str, parts)))
    described.update(changes)
    return from_dict(TrainConfig, described)


def losses(workdir):
    return [row["captions/loss"] for row in logs.read(workdir / "metrics.jsonl")]


def moved(before, after):
    """Returns {part of the model: the largest change of one of its weights}."""
    largest = {}
    for path, leaf in trees.flatten(after).items():
        step = np.max(
            np.abs(
                np.asarray(leaf, np.float32) - np.asarray(trees.flatten(before)[path], np.float32)
            )
        )
        largest[path.split("/")[1]] = max(float(step), largest.get(path.split("/")[1], 0.0))
    return largest


@pytest.fixture(scope="module")
def published(world, tmp_path_factory):
    """An OpenFlamingo in its published form. Its tokenizer has the words of the world."""
    directory = tmp_path_factory.mktemp("open_flamingo")
    inputs = open_flamingo_models.write(open_flamingo_models.build(FAMILY, EVERY), directory)
    pieces = SentencePieceTokenizer.load(world / "tokenizer", ())
    words = dict.fromkeys(pieces.decode([number]).strip() for number in range(4, pieces.vocab_size))
    names = ["<|endoftext|>", "<unk>", *words][: open_flamingo_models.PIECES]
    names += [f"w{number}" for number in range(open_flamingo_models.PIECES - len(names))]
    file = inputs.lm / "tokenizer.json"
    content = json.loads(file.read_text())
    content["model"]["vocab"] = {name: number for number, name in enumerate(names)}
    file.write_text(json.dumps(content))
    return inputs


@pytest.fixture(scope="module")
def converted(published, run_program, tmp_path_factory):
    """The export that `convert` writes, after a dry run."""
    place = tmp_path_factory.mktemp("converted")
    command = ("-m", "flamingo_jax.convert", "--source=open_flamingo", f"--input={published.input}")
    towers = (f"--lm={published.lm}", f"--vision={published.vision}")
    dry = run_program(*command, *towers, "--dry_run").stdout
    assert "-> flamingo/xattn/block/query/w" in " ".join(dry.split()) and not list(place.iterdir())
    done = run_program(*command, *towers, f"--output={place / 'open_flamingo'}")
    assert done.stdout == f"{place / 'open_flamingo'}: kind flamingo, from open_flamingo\n"
    return place / "open_flamingo"


@pytest.fixture(scope="module")
def trained(converted, world, run_program, tmp_path_factory):
    """The workdir of further training that ended after half of its steps and was started again."""
    workdir = tmp_path_factory.mktemp("run") / "open_flamingo"
    run_lib.train(config_of(world, converted, steps=imported.STEPS // 2), workdir, devices=ONE)
    config = f"--config=tests/e2e/imported.py:{world},{converted}"
    run_program("-m", "flamingo_jax.train", config, f"--workdir={workdir}")
    return workdir


def test_open_flamingo_trains_further_and_goes_on_where_it_was_stopped(converted, trained):
    """The parts that OpenFlamingo trained are trained, its towers do not change, the loss falls."""
    assert len(losses(trained)) == imported.STEPS
    assert losses(trained)[-1] < losses(trained)[0]
    steps = moved(open_checkpoint(converted).params, open_checkpoint(trained / "export").params)
    assert steps.pop("lm") == steps.pop("vision") == 0.0
    assert set(steps) == {"resampler", "xattn", "new_tokens"} and min(steps.values()) > 1e-3


def test_its_export_is_evaluated_on_a_benchmark(trained, run_program, tmp_path):
    """The flags are those of the commands in configs/open_flamingo_*.py, at 0 and 2 shots."""
    (data,) = benchmarks.make("okvqa", tmp_path / "okvqa").values()
    run_program(
        *("-m", "flamingo_jax.evaluate", "--config=configs/evaluate.py:paper"),
        *(f"--checkpoint={trained}", f"--output={tmp_path / 'report'}", "--task=okvqa"),
        *(f"--config.data.okvqa={data}", "--shots=0,2", "--config.batch_size=3"),
        *("--config.inference.beam_ends=best", "--config.inference.max_new_tokens=3"),
        *("--config.inference.xattn_chunk=0", "--config.inference.lengths=(64,)"),
        "--config.inference.num_images=(3,)",
    )
    rows = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [(row["task"], row["shots"], row["n"], row["step"]) for row in rows] == [
        ("okvqa", shots, 3, imported.STEPS) for shots in (0, 2)
    ]


IMAGES = [tiny.image(seed, open_flamingo_models.IMAGE_SIZE) for seed in (1, 2)]
CANDIDATES = (" a", " big")


@pytest.fixture(scope="module")
def asked(trained):
    """(tokens of a prompt, the trained model's log-likelihoods of the candidates, their ids)."""
    model = Flamingo.load(trained / "export", config=CONFIG)
    prompt = [IMAGES[0], "this is a", IMAGES[1], "this is"]
    (scores,) = model.score([prompt], CANDIDATES)
    ids = [model.tokenizer.encode(candidate) for candidate in CANDIDATES]
    assert [len(each) for each in ids] == [1, 1] and ids[0] != ids[1]
    return model.read(prompt).tokens, scores, [number for (number,) in ids]


def test_the_command_line_says_what_python_does(asked, trained, run_program, tmp_path):
    for name, image in zip("ab", IMAGES, strict=True):
        PIL.Image.fromarray(image).save(tmp_path / f"{name}.png")
    prompt = f"{{{tmp_path}/a.png}}this is a{{{tmp_path}/b.png}}this is"
    candidates = [f"--candidate={word}" for word in CANDIDATES]
    done = run_program(
        "-m", "flamingo_jax.generate", f"--checkpoint={trained}", *candidates, prompt
    )
    ranked = sorted(zip(asked[1], CANDIDATES, strict=True), reverse=True)
    printed = done.stdout.split()
    assert printed[::2] == [word.strip() for _, word in ranked]
    # Two digits are printed, computed in bfloat16 or float32 depending on the machine. 0.05 is a
    # tenth of the difference between the candidates.
    np.testing.assert_allclose(
        [float(number) for number in printed[1::2]], [score for score, _ in ranked], atol=0.05
    )


def test_the_way_back_gives_their_class_what_was_trained_here(asked, trained, tmp_path):
    """PyTorch gives our scores within 1e-4 of the largest logit: float32 sums in another order."""
    import torch

    file = Path(tmp_path) / "checkpoint.pt"
    publishers.write_back("open_flamingo", Path(trained), file)
    # A new instance, since the weights are replaced.
    theirs = open_flamingo_models.build.__wrapped__(FAMILY, EVERY).flamingo
    theirs.load_state_dict(torch.load(str(file), weights_only=True), strict=False)
    tokens, scores, ids = asked
    with torch.no_grad():
        out = theirs(
            vision_x=open_flamingo_models.pixels(np.stack(IMAGES)[None]),
            lang_x=torch.from_numpy(tokens).long()[None],
        )
    expected = torch.log_softmax(out.logits[0, -1], -1).numpy()[ids]
    np.testing.assert_allclose(scores, expected, atol=1e-4 * out.logits.abs().max().item())


def test_idefics_trains_further(idefics_directory, world, tmp_path):  # noqa: F811
    """Image markers, separate tables, gates: its own. The export keeps the prompt format."""
    converted = writing.write(
        publishers.describe("idefics", publishers.Inputs(Path(idefics_directory[0]))),
        tmp_path / "export",
    )
    workdir = tmp_path / "run"
    config = config_of(world, converted, steps=2)
    run_lib.train(config, workdir, devices=ONE)
    assert len(losses(workdir)) == 2 and np.isfinite(losses(workdir)).all()
    steps = moved(open_checkpoint(converted).params, open_checkpoint(workdir / "export").params)
    assert steps.pop("lm") == steps.pop("vision") == 0.0
    assert set(steps) == {"resampler", "xattn", "new_tokens"} and min(steps.values()) > 1e-3
    before, after = (Flamingo.load(where, config=CONFIG) for where in (converted, workdir))
    prompt = ["User: what? ", tiny.image(1, config.data.image_size), "this is a"]
    np.testing.assert_array_equal(before.read(prompt).tokens, after.read(prompt).tokens)
    assert after.engine.stop == before.engine.stop


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """The export of a LLaMA with grouped heads and a tokenizer of bytes."""
    import torch
    import transformers

    directory = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_lm.LLAMA)).save_pretrained(
        directory
    )
    hf_lm.write_tokenizer(directory)
    described = publishers.describe("hf_lm", publishers.Inputs(Path(directory)))
    return writing.write(described, tmp_path_factory.mktemp("towers") / "lm")


@pytest.fixture(params=[pytest.param("clip", marks=pytest.mark.slow), "nfnet_deepmind"])
def vision_encoder(request, published, tmp_path, monkeypatch):
    """CLIP's encoder from a directory, or an NFNet from a pickle."""
    if request.param == "clip":
        path = published.vision
    else:
        path, _ = nfnet.write(tmp_path, monkeypatch)
        assert nfnet_deepmind.NFNETS == {"F0": nfnet.CONFIG}
    described = publishers.describe(request.param, publishers.Inputs(Path(path)))
    return writing.write(described, tmp_path / "vision")


def test_a_new_flamingo_grows_between_converted_towers(
    language_model, vision_encoder, world, tmp_path
):
    workdir = tmp_path / "run"
    config = config_of(world, language_model, vision_encoder, steps=2)
    run_lib.train(config, workdir, devices=ONE)
    assert losses(workdir)[1] < losses(workdir)[0]
    params = open_checkpoint(workdir / "export").params
    towers = {
        "lm": open_checkpoint(language_model).params,
        "vision": open_checkpoint(vision_encoder).params,
    }
    for name, tower in towers.items():
        for path, leaf in trees.flatten(tower).items():
            np.testing.assert_array_equal(
                trees.flatten(params)[f"flamingo/{path}"], leaf, err_msg=name
            )
    read = Flamingo.load(workdir, config=CONFIG).read(
        [tiny.image(1, config.data.image_size), "this is a<EOC>"]
    )
    # <s>, which its tokenizer puts first; <image>, with an id beyond the vocabulary
    assert list(read.tokens[:2]) == [0, hf_lm.LLAMA["vocab_size"] + 1]
    assert read.tokens[-1] == hf_lm.LLAMA["vocab_size"]
