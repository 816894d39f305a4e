"""Which configs and data launch/demo.sh and emoji.sh take for each size, and launch/model_sizes.sh.

The programs are a stub that writes down its command. tests/e2e/test_model_sizes.py runs the real
ones.
"""

import re

import pytest

STAGES = ("contrastive", "language_model", "flamingo")


def configs(called):
    """Returns the arguments of the configs of the trainings, in order."""
    return [
        re.search(r" --config=configs/\w+\.py:(\S+)", line)[1]
        for line in called
        if "flamingo_jax.train" in line
    ]


@pytest.mark.parametrize(
    ("script", "options", "records", "evaluation"),
    [
        (
            "demo.sh",
            (),
            "--size=gpu --page_mix=0.5,0.15,0.35",
            "bind2_held_out,questions,questions_hidden --shots=0,1,2,4,8,16,32",
        ),
        ("emoji.sh", ("--packages={0}",), "--size=gpu --image_size=48", "--shots=0,1,2,4,8,16"),
    ],
)
def test_the_gpu_size_has_its_own_configs_records_and_shots(
    launch, tmp_path, script, options, records, evaluation
):
    options = [option.format(tmp_path) for option in options]
    status, called, said = launch(script, "--size=gpu", f"--output={tmp_path / 'out'}", *options)
    assert status == 0, said
    assert configs(called) == [f"gpu,{stage}" for stage in STAGES]
    assert called[0].endswith(records)
    assert evaluation in called[-1]


def test_another_model_takes_what_a_demo_has_made(launch, tmp_path):
    base, small = tmp_path / "base", tmp_path / "small"
    assert launch("demo.sh", f"--output={base}")[0] == 0
    options = ("--model=small", f"--output={small}")
    status, called, said = launch("demo.sh", *options, f"--from={base}")
    assert status == 0, said
    assert configs(called) == ["small,language_model", "small,flamingo"]
    flamingo, evaluation = called[1:]
    assert f"--config.towers.vision={base}/contrastive/export" in flamingo
    assert f"--config.towers.lm={small}/language_model/export" in flamingo
    assert f"--config.data.datasets.pages.path={base}/world/pages" in flamingo
    assert f"--config.data.world={base}/world" in evaluation
    # Without another demo it makes all itself: other options than before.
    status, called, said = launch("demo.sh", *options)
    assert status == 1 and not called
    assert f"with other options (from={base} model=small size=demo seed=1 )" in said


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model=small", "--size=gpu"), "--size=gpu has a model of its own"),
        (("--from={0}/nowhere",), "nowhere has no world: give the output of a demo"),
        (("--model=huge",), "does not know --model=huge"),
    ],
)
def test_options_that_do_not_go_together_are_named(launch, tmp_path, options, message):
    options = [option.format(tmp_path) for option in options]
    status, called, said = launch("demo.sh", f"--output={tmp_path / 'out'}", *options)
    assert status in (1, 2) and not called
    assert message in said


def test_three_sizes_share_one_world_for_each_seed(launch, tmp_path):
    status, called, said = launch("model_sizes.sh", f"--output={tmp_path}", "--seeds=1,2")
    assert status == 0, said
    of_seed = [f"small,{stage}" for stage in STAGES]
    of_seed += [*STAGES[1:], "large,language_model", "large,flamingo"]
    assert configs(called) == of_seed * 2
    assert sum("--pipeline=world" in line for line in called) == 2
    language_models = [line for line in called if "language_model --workdir" in line]
    assert len(language_models) == 6
    same = "--config.steps=800 --config.until.every=0"
    assert all(same in line for line in language_models)
    assert sum(same in line for line in called) == 6
    runs = [
        f"{m}={tmp_path}/seed{s}/{m}/report" for s in (1, 2) for m in ("small", "base", "large")
    ]
    assert called[-1] == (
        f"-m flamingo_jax.evaluate --report=SIZES,{','.join(runs)} --output={tmp_path}/report"
    )


def test_a_size_that_fails_ends_the_script_and_is_named(launch, tmp_path):
    failing = {"FAILS": "base/flamingo", "STATUS": "1"}
    status, called, said = launch("model_sizes.sh", f"--output={tmp_path}", **failing)
    assert status == 1 and "base, seed 1, was not made" in said
    assert "base/flamingo" in called[-1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--models=small,huge", "there is no model huge"),
        ("--seeds=1,x", "--seeds has x"),
        ("--seeds=1,1", "--seeds has 1 twice"),
        ("--seeds=1,01", "--seeds has 01; expected numbers"),
        ("--models=small,base,small", "--models has small twice"),
        ("--config.seed=2", "give the seeds as --seeds=1,2"),
        ("--size=gpu", "does not know --size=gpu"),
    ],
)
def test_wrong_options_are_named_before_anything_is_made(launch, tmp_path, option, message):
    status, called, said = launch("model_sizes.sh", f"--output={tmp_path / 'out'}", option)
    assert status in (1, 2) and not called
    assert message in said and not (tmp_path / "out").exists()
