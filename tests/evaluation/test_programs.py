"""The programs evaluate and generate on tiny exports, and their error messages."""

import json

import PIL.Image
import pytest

from configs import evaluate as evaluate_config
from flamingo_jax.checkpoint.export import export
from flamingo_jax.core.config import from_dict, to_dict
from flamingo_jax.evaluation import registry
from flamingo_jax.evaluation.comparison import ComparisonTask
from flamingo_jax.evaluation.config import DIRECTORIES, EvaluateConfig
from flamingo_jax.evaluation.report.published import contrastive
from flamingo_jax.inference.model import CheckpointError, Flamingo
from flamingo_jax.models.config import ModelConfig
from tests.inference import tiny


def write_export(directory, kind, tokenizer_directory):
    words = tiny.tokenizer(tokenizer_directory)
    parts = tiny.flamingo_config(words.vocab_size)
    config = ModelConfig(
        vision=parts.vision,
        resampler=parts.resampler,
        lm=parts.lm,
        xattn=parts.xattn,
        new_tokens=parts.new_tokens,
    )
    _, params = tiny.parts(words.vocab_size, "language_model" if kind == "contrastive" else kind)
    about = {
        "config": to_dict(config),
        "tokenizer": f"{tokenizer_directory}/tokenizer.model",
        "preprocessing": {"image_size": tiny.IMAGE_SIZE},
    }
    return export(directory, params, kind=kind, step=7, **about)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    base = tmp_path_factory.getbasetemp()
    return {
        kind: write_export(base / "exports" / kind, kind, base)
        for kind in ("flamingo", "language_model", "contrastive")
    }


@pytest.fixture(scope="module")
def cat(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "cat.png"
    PIL.Image.fromarray(tiny.image(2)).save(path)
    return path


def test_an_export_answers_as_the_model_did(exports, tmp_path_factory):
    """A model from files gives the same text; it has its checkpoint and its step."""
    loaded = Flamingo.load(exports["flamingo"], config=tiny.CONFIG)
    assert (loaded.step, loaded.checkpoint) == (7, str(exports["flamingo"]))
    prompt = [tiny.image(2), "this is a"]
    assert (
        loaded.generate(prompt) == tiny.load(tmp_path_factory.getbasetemp()).generate(prompt) != ""
    )


def test_a_contrastive_export_answers_nothing(exports):
    with pytest.raises(CheckpointError, match="is a contrastive model and cannot answer prompts"):
        Flamingo.load(exports["contrastive"])


def test_the_config_file_is_the_schema():
    config = from_dict(EvaluateConfig, evaluate_config.get_config())
    assert config.tasks == evaluate_config.TASKS
    assert set(evaluate_config.get_config().inference) == set(to_dict(config)["inference"])
    assert set(evaluate_config.get_config()) == set(to_dict(config))


def test_the_papers_setting_has_a_place_for_all_benchmarks():
    """Each benchmark has a flag for its directory, and `:paper` evaluates all of Table 1."""
    config = from_dict(EvaluateConfig, evaluate_config.get_config("paper"))
    assert (len(config.tasks), config.shots, config.n) == (16, (0, 4, 8, 16, 32), 0)
    assert (config.inference.decoding, config.inference.beams) == ("beam", 3)
    directories = dict.fromkeys(DIRECTORIES, "somewhere")
    names = [*config.tasks, "imagenet", "kinetics700"]
    assert sorted(names) == sorted(registry.PAPER_BENCHMARKS)
    assert [registry.create(name, directories).name for name in names] == names
    with pytest.raises(ValueError, match="configs/evaluate.py:papers is not known"):
        evaluate_config.get_config("papers")


def test_the_contrastive_setting_compares_all_that_was_published():
    config = from_dict(EvaluateConfig, evaluate_config.get_config("contrastive"))
    names = "imagenet_zero_shot kinetics700_zero_shot coco_retrieval flickr30k_retrieval".split()
    assert (list(config.tasks), config.n) == (names, 0)
    directories = dict.fromkeys(DIRECTORIES, "somewhere")
    created = [registry.create(name, directories) for name in config.tasks]
    assert all(isinstance(each, ComparisonTask) and contrastive(each.name) for each in created)


def test_generate(run_program, exports, cat):
    done = run_program(
        "-m",
        "flamingo_jax.generate",
        f"--checkpoint={exports['flamingo']}",
        "--beams=1",
        "--max_new_tokens=5",
        f"{{{cat}}}this is a",
        "output :",
    )
    assert len(done.stdout.splitlines()) == 2


@pytest.mark.parametrize(("flag", "frozen"), [([], "compute"), (["--frozen=int8"], "int8")])
def test_generate_rounds_the_towers_as_it_is_asked_to(run_program, flag, frozen):
    """The model's loading is replaced by one that says what it was asked for."""
    code = (
        "import runpy, sys\n"
        "from flamingo_jax.inference.model import Flamingo\n"
        "Flamingo.load = lambda checkpoint, config: sys.exit(f'{checkpoint} {config.frozen}')\n"
        "sys.argv[0] = 'generate'\n"
        "runpy.run_module('flamingo_jax.generate', run_name='__main__')"
    )
    done = run_program("-c", code, "--checkpoint=a", *flag, "this is a", status=1)
    assert done.stderr == f"a {frozen}\n"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("{cow.png}Output:", "PromptError: prompt: there is no image file 'cow.png'"),
        ("{cat.png Output:", "PromptError: prompt: the brace at character 0"),
    ],
)
def test_generate_says_what_is_wrong(run_program, prompt, message):
    """The error comes before the checkpoint is opened."""
    done = run_program("-m", "flamingo_jax.generate", "--checkpoint=nowhere", prompt, status=1)
    assert done.stderr.startswith(message) and "Traceback" not in done.stderr


def test_evaluate_a_language_model(run_program, exports, tmp_path):
    arguments = (
        "--config=configs/evaluate.py",
        f"--checkpoint={exports['language_model']}",
        f"--output={tmp_path}",
    )
    done = run_program(
        "-m",
        "flamingo_jax.evaluate",
        *arguments,
        "--task=lm_lookup",
        "--shots=2,4",
        "--config.n=4",
        "--config.batch_size=4",
    )
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["task"], row["shots"], row["metric"], row["n"]) for row in rows] == [
        ("lm_lookup", 2, "ranking", 4),
        ("lm_lookup", 2, "nll", 4),
        ("lm_lookup", 4, "ranking", 4),
        ("lm_lookup", 4, "nll", 4),
    ]
    assert "task \\ shots" in done.stdout and (tmp_path / "few_shot.png").exists()
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--task=formt"], "UnknownTaskError: unknown task 'formt': did you mean 'format'"),
        (["--task=format", "--config.data.world="], "needs the directory of 'world'"),
        (["--config=tiny"], "--config=tiny is no EvaluateConfig: it has the field"),
        (["--shots=four"], "ConfigError: --shots=four: expected numbers"),
        (["--task=lm_lookup"], "CheckpointError: There is no checkpoint at nowhere"),
    ],
)
def test_evaluate_says_what_is_wrong(run_program, tmp_path, arguments, message):
    done = run_program(
        "-m",
        "flamingo_jax.evaluate",
        "--config=configs/evaluate.py",
        "--checkpoint=nowhere",
        f"--output={tmp_path}",
        *arguments,
        status=1,
    )
    assert message in done.stderr and "Traceback" not in done.stderr
