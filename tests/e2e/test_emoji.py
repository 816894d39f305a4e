"""launch/emoji.sh at its smoke size runs every part in order, on drawings of our own.

What is learnt in so few updates proves nothing: configs/emoji.py has the numbers of the whole.
"""

import json

import pytest

from flamingo_jax.data.sources import Source
from flamingo_jax.tokenizers.sentencepiece import SentencePieceTokenizer
from tests.data_pipelines.emoji import packages
from tests.e2e.launched import run_script

UNKNOWN = 3  # of the word tokenizer
STAGES = ("contrastive", "language_model", "flamingo")


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    """A function that runs the script; each call is of the same run."""
    folder = tmp_path_factory.mktemp("emoji")
    input_, output = packages.write(folder / "node_modules"), folder / "run"

    def run():
        options = (f"--packages={input_}", f"--output={output}", "--size=smoke")
        small = ("--config.model.lm.num_layers=1", "--config.seed=3")
        done = run_script("emoji.sh", *options, *small)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done.stdout, output

    return run


@pytest.fixture(scope="module")
def output(smoke):
    """The folder of the finished run."""
    return smoke()[1]


def test_all_parts_run(output):
    for stage in STAGES:
        assert (output / stage / "export" / "model.json").exists()
    tokenizer = SentencePieceTokenizer.load(output / "tokenizer", ())
    captions = Source(output / "records" / "captions")
    words = {word for i in range(len(captions)) for word in captions[i].text.split()}
    assert words
    assert not {word for word in words if UNKNOWN in tokenizer.encode(word)}
    assert "CC-BY 4.0" in (output / "records" / "LICENCES.md").read_text()
    rows = json.loads((output / "report" / "results.json").read_text())
    tasks = {row["task"] for row in rows}
    assert tasks >= {"emoji_name", "emoji_bind2", "emoji_bind5_hidden", "emoji_category_shuffled"}
    assert all(0 <= row["value"] <= 1 for row in rows)
    assert {row["shots"] for row in rows if row["task"] == "emoji_name"} == {0}
    assert {row["shots"] for row in rows if row["task"] == "emoji_bind2"} == {0, 2}


@pytest.mark.slow
@pytest.mark.usefixtures("output")
def test_a_rerun_skips_what_is_there(smoke):
    assert "records is complete, nothing to do" in smoke()[0]


@pytest.mark.parametrize("option", ["--confg.seed=2", "--size=tiny", "--packages="])
def test_unknown_options_are_named(option):
    done = run_script("emoji.sh", option)
    assert done.returncode == 2
    assert f"does not know {option}" in done.stderr


def test_a_folder_without_the_packages_is_named(tmp_path):
    done = run_script("emoji.sh", f"--packages={tmp_path}", f"--output={tmp_path / 'run'}")
    assert done.returncode == 1
    assert "emoji-datasource-google" in done.stderr
    assert "npm install" in done.stderr
