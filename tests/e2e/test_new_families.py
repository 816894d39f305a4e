"""What a user does with two converted towers: train between them, ask, evaluate, load again.

The towers are those of the newer families that `convert` reads. They are small and random, and
saved by transformers in their publishers' formats. Each step is a program.
"""

import dataclasses
import json
import pathlib

import numpy as np
import PIL.Image
import pytest

from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import trees
from flamingo_jax.inference.config import InferenceConfig
from flamingo_jax.inference.methods import Greedy
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.training import logs
from tests.conversion import test_hf_lm as hf_lm
from tests.e2e import imported
from tests.evaluation.fixtures import benchmarks
from tests.inference import tiny
from tests.parity import test_language_models as language_models
from tests.parity import test_vision_towers as vision_towers
from tests.training import small

pytestmark = [pytest.mark.parity, pytest.mark.slow]

# {a family of language models: the vision encoder that it is joined with}
PAIRS = {
    "qwen3": "siglip",
    "olmo2": "siglip2",
    "gemma2": "dinov2",
    "gemma3": "dinov2_with_registers",
}
PIECES = 400  # rows of the token table; the tokenizer of bytes has 258
CONFIG = InferenceConfig(
    lengths=(64,), num_images=(3,), images_per_pass=4, max_new_tokens=4, xattn_chunk=0
)


@dataclasses.dataclass(frozen=True)
class Trained:
    """A run between two converted towers.

    Attributes:
        lm, vision: exports of `convert`.
        workdir: of the run.
    """

    lm: pathlib.Path
    vision: pathlib.Path
    workdir: pathlib.Path


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small.make_world(tmp_path_factory.mktemp("world"))


def save_language_model(family, directory):
    """Writes the files of a random language model, and a tokenizer of bytes."""
    kind, fields = language_models.FAMILIES[family]
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    config = kind(**{**fields, **ends, "vocab_size": PIECES})
    model = language_models.transformers.AutoModelForCausalLM.from_config(config)
    language_models.randomised(model).save_pretrained(directory)
    hf_lm.write_tokenizer(directory)


@pytest.fixture(scope="module", params=PAIRS)
def trained(request, world, run_program, tmp_path_factory):
    family, tower = request.param, PAIRS[request.param]
    place = tmp_path_factory.mktemp(family)
    save_language_model(family, place / "published_lm")
    vision_towers.clip._randomised(vision_towers.MODELS[tower]()).save_pretrained(
        place / "published_vision"
    )
    for name, source in (("lm", "hf_lm"), ("vision", vision_towers.source_of(tower))):
        files = f"--input={place / f'published_{name}'}"
        run_program(
            "-m", "flamingo_jax.convert", f"--source={source}", files, f"--output={place / name}"
        )
    config = f"--config=tests/e2e/imported.py:{world},{place / 'lm'},{place / 'vision'}"
    run_program("-m", "flamingo_jax.train", config, f"--workdir={place / 'run'}")
    return Trained(place / "lm", place / "vision", place / "run")


def test_new_layers_learn_between_two_converted_towers(trained):
    """The loss of the same captions falls; the towers stay what they were, to the bit."""
    losses = [row["captions/loss"] for row in logs.read(trained.workdir / "metrics.jsonl")]
    assert len(losses) == imported.STEPS and losses[-1] < losses[0]
    after = trees.flatten(open_checkpoint(trained.workdir / "export").params)
    for tower in (trained.lm, trained.vision):
        for path, leaf in trees.flatten(open_checkpoint(tower).params).items():
            np.testing.assert_array_equal(after[f"flamingo/{path}"], leaf, err_msg=path)
    gates = [leaf for path, leaf in after.items() if path.endswith("_gate")]
    assert gates and all(np.all(gate != 0) for gate in gates)


def test_it_is_asked_from_the_command_line_and_from_python(trained, run_program, tmp_path):
    """The run and its export say the same, token by token and as a whole."""
    picture = tiny.image(1, vision_towers.SIZE)
    PIL.Image.fromarray(picture).save(tmp_path / "a.png")
    program = ("-m", "flamingo_jax.generate", "--max_new_tokens=4", "--beams=1")
    prompt = f"{{{tmp_path}/a.png}}this is a"
    said = [
        run_program(*program, f"--checkpoint={checkpoint}", prompt).stdout
        for checkpoint in (trained.workdir, trained.workdir / "export")
    ]
    assert said[0] == said[1]
    models = [
        Flamingo.load(checkpoint, config=CONFIG)
        for checkpoint in (trained.workdir, trained.workdir / "export")
    ]
    parts = [picture, "this is a<EOC>", tiny.image(2, vision_towers.SIZE), "this is a"]
    whole = [model.generate(parts, method=Greedy(4)) for model in models]
    assert whole[0] == whole[1] == "".join(models[1].stream(parts, method=Greedy(4)))
    scores = [model.score(parts, [" red", " green"]) for model in models]
    assert scores[0] == scores[1] and scores[0][0] != scores[0][1]
    assert models[1].read(parts).media_index.max() == 2


def test_it_is_evaluated_on_a_benchmark(trained, run_program, tmp_path):
    (data,) = benchmarks.make("okvqa", tmp_path / "okvqa").values()
    run_program(
        *("-m", "flamingo_jax.evaluate", "--config=configs/evaluate.py:paper"),
        *(f"--checkpoint={trained.workdir}", f"--output={tmp_path / 'report'}", "--task=okvqa"),
        *(f"--config.data.okvqa={data}", "--shots=0,2", "--config.batch_size=3"),
        *("--config.inference.max_new_tokens=3", "--config.inference.xattn_chunk=0"),
        *("--config.inference.lengths=(256,)", "--config.inference.num_images=(3,)"),
    )
    rows = json.loads((tmp_path / "report" / "results.json").read_text())
    assert [(row["task"], row["shots"], row["n"], row["step"]) for row in rows] == [
        ("okvqa", shots, 3, imported.STEPS) for shots in (0, 2)
    ]
