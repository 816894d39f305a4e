"""launch/ablations.sh: which rows it trains, what it skips, and how it ends.

The programs are a stub that writes down its command. tests/e2e/test_ablations_full.py runs the real
ones.
"""

import pytest

from configs.ablations import tiny


@pytest.fixture
def ablations(launch, tmp_path):
    """Runs the script; returns its status, (row, seed) of each training, and what it said."""

    def run(*options, **more):
        output = f"--output={tmp_path / 'runs'}"
        status, commands, said = launch("ablations.sh", output, *options, **more)
        called = [
            (line[2].partition(":")[2], int(line[4].partition("=")[2]), line)
            for line in map(str.split, commands)
            if "configs/ablations/" in line[2]
        ]
        return status, called, said

    return run


def rows(called):
    return [(row, seed) for row, seed, _ in called]


def test_all_rows_are_trained_once(ablations):
    status, called, said = ablations()
    expected = [(row, seed) for row in tiny.ROWS for seed in (1, 2)]
    own_tower = expected.index(("small_vision", 1))
    expected[own_tower:own_tower] = [("small_vision,contrastive", 1)]
    expected[own_tower + 2 : own_tower + 2] = [("small_vision,contrastive", 2)]
    assert status == 0 and rows(called) == expected, said
    assert rows(ablations()[1]) == []


def test_rows_of_one_table_have_the_same_options(ablations):
    assert rows(ablations("--rows=mlp", "--seeds=1")[1]) == [("base", 1), ("mlp", 1)]
    status, called, said = ablations("--config.steps=5", "--rows=mlp")
    assert status == 1 and not called
    assert "holds ablations with other options (size=demo )" in said


def test_each_row_gets_its_data_and_its_towers(ablations, tmp_path):
    commands = {row: line for row, _, line in ablations("--seeds=1")[1]}
    made = f"{tmp_path / 'runs'}/seed1"
    vision = f"--config.towers.vision={made}/contrastive/export"
    assert vision in commands["base"] and vision not in commands["small_vision"]
    assert (
        f"--config.towers.vision={made}/rows/small_vision/contrastive/export"
        in (commands["small_vision"])
    )
    assert not any("towers.vision" in word for word in commands["vision_random"])
    assert not any("towers.lm" in word for word in commands["lm_random"])
    text = f"--config.data.datasets.text.path={made}/world/text"
    assert text in commands["text_random"] and text not in commands["lm_random"]
    assert f"--config.towers.lm={made}/language_model/export" in commands["lm_trained"]
    pairs = f"--config.data.datasets.pairs.path={made}/world/pairs"
    assert pairs in commands["base"] and pairs not in commands["no_pairs"]


def test_a_row_that_fails_is_named_and_the_others_go_on(ablations):
    options = ("--rows=no_gate,mlp", "--seeds=1")
    status, called, said = ablations(*options, FAILS=":no_gate", STATUS="1")
    assert status == 1 and rows(called) == [("base", 1), ("no_gate", 1), ("mlp", 1)]
    assert "not done (the reasons are above): no_gate, seed 1." in said
    status, called, _ = ablations(*options)
    assert status == 0 and rows(called) == [("no_gate", 1)]


def test_it_ends_when_a_program_was_stopped(ablations):
    status, called, said = ablations("--seeds=1", FAILS=":no_pairs", STATUS="75")
    assert status == 75 and rows(called) == [("base", 1), ("no_pairs", 1)]
    assert "no_pairs, seed 1, was stopped. The same command goes on" in said


def test_a_report_of_other_configs_is_not_in_the_table(launch, tmp_path):
    """It stays where a row failed, or was not asked for, after the configs were changed."""
    options = ("ablations.sh", f"--output={tmp_path / 'runs'}", "--rows=mlp", "--seeds=1")
    launch(*options)
    work = {row: tmp_path / "runs" / "seed1" / "rows" / row for row in ("base", "mlp")}
    for place in work.values():
        (place / "report").mkdir(parents=True, exist_ok=True)
        (place / "report" / "results.json").write_text("[]")
    (joined,) = [line for line in launch(*options)[1] if "--report=TINY" in line]
    assert f"TINY,{work['base']}/report,{work['mlp']}/report " in joined
    (work["mlp"] / "done").write_text("an older sum")
    status, called, said = launch(*options, FAILS=":mlp", STATUS="1")
    (joined,) = [line for line in called if "--report=TINY" in line]
    assert status == 1 and f"TINY,{work['base']}/report " in joined
    assert f"{work['mlp']}/report is of other configs or of a row that is not done" in said


@pytest.mark.parametrize("script", ["ablations.sh", "model_sizes.sh"])
def test_a_directory_that_no_report_could_name_is_refused_at_once(launch, tmp_path, script):
    status, called, said = launch(script, f"--output={tmp_path}/a,b")
    assert status == 1 and not called and "a,b has a comma" in said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--rows=no_gates", "there is no row no_gates; the rows are base no_pairs "),
        ("--seeds=1,x", "--seeds has x; expected numbers"),
        ("--seeds=1,2,1", "--seeds has 1 twice"),
        ("--rows=no_gate,no_gate", "--rows has no_gate twice"),
        ("--config.seed=3", "give the seeds as --seeds=1,2"),
        ("--row=mlp", "does not know --row=mlp"),
    ],
)
def test_wrong_options_are_named_before_anything_is_made(ablations, tmp_path, option, message):
    status, called, said = ablations(option)
    assert status and message in said and not called and not (tmp_path / "runs").exists()
