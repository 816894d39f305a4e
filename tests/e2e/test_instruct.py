"""Instruction data from files to a dialogue: records, a few updates, the export, and a chat."""

import dataclasses
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from configs import instruct
from data_pipelines import run as pipelines
from data_pipelines.instruct.instructions import InstructRequest
from data_pipelines.on_beam import Execution
from flamingo_jax.core.config import from_dict
from flamingo_jax.core.paths import read_json
from flamingo_jax.data.config import DatasetConfig
from flamingo_jax.inference.model import Flamingo
from flamingo_jax.inference.prompt import Image
from flamingo_jax.tokenizers.chat_template import TURNS
from flamingo_jax.training import logs
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run import train
from tests.conftest import ROOT
from tests.evaluation.fixtures import pictures
from tests.training import small


def test_the_config_counts_the_answers_alone():
    for argument in ("/data", "/data,80b"):
        config = from_dict(TrainConfig, instruct.get_config(argument))
        (dataset,) = config.data.datasets.values()
        assert (dataset.kind, dataset.loss_on) == ("conversations", "answers")
        assert dataset.path == "/data/instructions"
        assert dataset.batch_size % (config.mesh.replica * config.mesh.data) == 0
        assert config.data.preprocessing["chat"]["has_examples"] is False
    with pytest.raises(ValueError, match="got '/data,4b'; expected DIRECTORY"):
        instruct.get_config("/data,4b")


@pytest.mark.slow
def test_from_files_to_a_chat(tmp_path):
    colours = ("red", "blue", "green", "yellow")
    rows = [
        {
            "id": str(number),
            "image": f"{number}.jpg",
            "conversations": [
                {"from": "human", "value": "<image>\na big"},
                {"from": "gpt", "value": f"{colours[number % 4]} circle"},
                {"from": "human", "value": "a small"},
                {"from": "gpt", "value": f"{colours[number % 4]} square"},
            ],
        }
        for number in range(8)
    ]
    rows.append({**rows[0], "image": "gone.jpg"})
    for number in range(8):
        pictures.write(tmp_path / "images" / f"{number}.jpg", number)
    (tmp_path / "llava.json").write_text(json.dumps(rows))
    request = InstructRequest(input=str(tmp_path / "llava.json"), images=str(tmp_path / "images"))
    how = Execution(num_workers=1, max_broken=0.2)
    pipelines.make("instruct", request, str(tmp_path / "records"), how)
    report = read_json(tmp_path / "records" / "report.json")
    assert (report["out"], report["rejected"]) == ({"train": 8}, {"missing_image": 1})

    world = small.make_world(tmp_path / "world")
    initial = small.make_export(
        tmp_path / "flamingo", world, "flamingo", rng=np.random.default_rng(1)
    )
    described = small.with_world(small.get_config("flamingo"), world)
    described.update(steps=4, initial=str(initial))
    described.towers.update(lm=None, vision=None)
    run = from_dict(TrainConfig, described)
    talk = DatasetConfig(
        "conversations",
        str(tmp_path / "records"),
        batch_size=4,
        length=32,
        max_images=1,
        loss_on="answers",
    )
    run = dataclasses.replace(run, data=dataclasses.replace(run.data, datasets={"talk": talk}))
    workdir = tmp_path / "run"
    train(run, str(workdir), devices=jax.devices()[:1])
    losses = [line["loss"] for line in logs.read(workdir / "metrics.jsonl") if "loss" in line]
    assert len(losses) == 4 and losses[-1] < losses[0]

    for path in (workdir / "export", workdir):  # a workdir's newest step is written in this way too
        model = Flamingo.load(str(path))
        assert model.chat_template == TURNS
    chat = model.chat()
    first = chat.say([Image(str(tmp_path / "images" / "1.jpg")), "a big"])
    second = chat.say("a small")
    assert isinstance(first, str) and isinstance(second, str)

    done = subprocess.run(
        [
            *(sys.executable, "-m", "flamingo_jax.generate", "--chat"),
            f"--checkpoint={workdir / 'export'}",
        ],
        cwd=ROOT,
        input=f"{{{tmp_path}/images/1.jpg}} a big\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert f"Flamingo: {first}" in done.stdout
