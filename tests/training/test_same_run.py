"""A workdir belongs to one run: its config, its data, its export; other ones are refused."""

import dataclasses
import json
import re
import shutil

import jax
import numpy as np
import pytest

from flamingo_jax.checkpoint import store
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import open_checkpoint
from flamingo_jax.core import agreement, paths
from flamingo_jax.core.config import from_dict
from flamingo_jax.tokenizers.load import load_tokenizer
from flamingo_jax.training import run as run_lib
from flamingo_jax.training import run_export
from flamingo_jax.training.config import TrainConfig
from flamingo_jax.training.run_id import WorkdirTaken
from tests.training import small

ONE = jax.devices()[:1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return small.make_world(tmp_path_factory.mktemp("world"))


def config_of(world):
    """Returns a language_model run of one narrow layer."""
    config = from_dict(TrainConfig, small.with_world(small.get_config("language_model"), world))
    lm = dataclasses.replace(config.model.lm, num_layers=1)
    return dataclasses.replace(config, steps=2, model=dataclasses.replace(config.model, lm=lm))


@pytest.fixture(scope="module")
def config(world):
    return config_of(world)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """A finished run; not to be changed."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    run_lib.train(config, workdir, devices=ONE)
    return workdir


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy of the finished run."""
    return paths.Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def moved(world, tmp_path):
    """A copy of the world."""
    return paths.Path(shutil.copytree(world, tmp_path / "world"))


@pytest.fixture
def never_compiles(monkeypatch):
    """Fails a test that makes a step."""
    monkeypatch.setattr(run_lib, "make_step", lambda *_, **__: pytest.fail("a step was made"))


def train(config, workdir):
    """Returns the lines of a run."""
    lines = []
    run_lib.train(config, workdir, devices=ONE, report=lines.append)
    return lines


def refusal(config, workdir):
    """Returns the one line with which a run is refused; nothing of the workdir changes."""
    before = content(workdir)
    with pytest.raises(CheckpointError) as caught:
        train(config, workdir)
    (line,) = str(caught.value).splitlines()
    after = content(workdir)
    for side in (before, after):
        side.pop("run.json", None)
    assert after == before
    return line


def content(directory):
    """Returns {file: content} of a directory, with subdirectories."""
    found = {}
    for entry in directory.iterdir():
        if entry.is_dir():
            found |= {f"{entry.name}/{name}": data for name, data in content(entry).items()}
        else:
            found[entry.name] = entry.read_bytes()
    return found


def card(workdir):
    return json.loads((workdir / "export" / "model.json").read_text())


def make_older(workdir, **fields):
    """Makes an export look as version 0.4.0 wrote it."""
    changed = {k: v for k, v in card(workdir).items() if k not in ("run", "manifest")} | fields
    (workdir / "export" / "model.json").write_text(json.dumps(changed))
    (workdir / "export" / "manifest.json").unlink()


# The export.


def test_an_export_names_its_run_without_paths_of_this_machine(finished, world):
    run = card(finished)["run"]
    assert run["id"] == json.loads((finished / "run.json").read_text())["id"]
    assert run["record"]["seed"] == 1 and run["record"]["records"]["text"]["count"] == 64
    assert str(world) not in json.dumps(run)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 5}, "config.seed: 1 -> 5"),
        ({"mixing": "merged"}, "config.mixing: 'accumulate' -> 'merged'"),
    ],
)
def test_the_export_of_another_run_is_refused(config, workdir, never_compiles, change, named):
    (workdir / "checkpoints").rmtree()
    line = refusal(dataclasses.replace(config, **change), workdir)
    assert f"{workdir}/export is the export of another run (there -> here): {named}. " in line
    assert "another --workdir, or move the export away" in line


def test_a_run_that_begins_with_other_weights_is_another_run(
    config, workdir, never_compiles, monkeypatch
):
    """`initial` is an export that was replaced under the same path."""
    (workdir / "checkpoints").rmtree()
    monkeypatch.setattr(run_lib.towers, "start_records", lambda _: {"initial": "b" * 64})
    assert "start.initial: absent -> 'bbbb" in refusal(config, workdir)


@pytest.mark.parametrize("content", ["null", "5", '{"start": 3}', "another start", "other notes"])
def test_a_damaged_config_of_a_checkpoint_is_not_taken_for_another_run(
    config, workdir, never_compiles, content
):
    file = workdir / "checkpoints" / "2" / "config" / "metadata"
    stored = json.loads(file.read_text())
    changed = {
        "another start": {**stored, "start": {"initial": "0123"}},
        "other notes": {**stored, "deviations": [3]},
    }
    file.write_text(json.dumps(changed[content]) if content in changed else content)
    assert re.match("All checkpoints in .* are damaged.*config/metadata", refusal(config, workdir))


def test_a_step_under_the_name_of_another_is_refused(config, workdir):
    (workdir / "checkpoints" / "2").rename(workdir / "checkpoints" / "4")
    line = refusal(config, workdir)
    assert line.startswith("Checkpoint 4 of this run is the state after 2 updates: ")


def test_the_export_of_the_same_run_is_replaced(config, workdir):
    """At another step, and also at the same step if the run was trained anew."""
    (workdir / "checkpoints").rmtree()
    before = card(workdir)
    assert train(config, workdir)[-1] == f"Exported step 2 to {workdir}/export."
    assert card(workdir)["content_hash"] == before["content_hash"]
    assert card(workdir)["run"]["id"] != before["run"]["id"]
    more = dataclasses.replace(config, steps=4, name="longer")
    assert train(more, workdir)[-1] == f"Exported step 4 to {workdir}/export."
    assert open_checkpoint(workdir / "export").step == 4
    assert train(more, workdir)[-1] == f"{workdir}/export is of step 4 already."


@pytest.mark.parametrize("damage", ["", "{", '{"step": 2}'])
def test_a_damaged_card_is_reported_and_the_export_made_again(config, workdir, damage):
    (workdir / "export" / "model.json").write_text(damage)
    lines = train(config, workdir)
    assert "is damaged" in lines[-2] and "is made again" in lines[-2]
    assert lines[-1] == f"Exported step 2 to {workdir}/export."
    assert open_checkpoint(workdir / "export").step == 2


def test_an_export_of_an_older_version_is_kept_if_its_weights_are_the_same(config, workdir):
    make_older(workdir)
    before = content(workdir / "export")
    lines = train(config, workdir)
    assert "does not name the run that made it" in lines[0]
    assert lines[-1] == f"{workdir}/export is of step 2 already."
    assert content(workdir / "export") == before


def test_an_export_of_an_older_version_is_replaced_if_its_weights_are_others(config, workdir):
    make_older(workdir, content_hash="0" * 64)
    assert train(config, workdir)[-1] == f"Exported step 2 to {workdir}/export."
    assert card(workdir)["run"]
    jax.tree.map(
        np.testing.assert_array_equal,
        open_checkpoint(workdir / "export").params,
        open_checkpoint(workdir / "checkpoints" / "2").params,
    )


def test_an_export_that_names_no_run_is_refused_where_it_may_be_another_runs(
    config, workdir, never_compiles
):
    make_older(workdir)
    (workdir / "checkpoints").rmtree()
    assert "does not name the run that made it" in refusal(config, workdir)
    lm = dataclasses.replace(config.model.lm, rotary_base=3.0)
    other = dataclasses.replace(config, model=dataclasses.replace(config.model, lm=lm))
    line = refusal(other, workdir)
    assert "of another model (there -> here): model.lm.rotary_base: " in line


# The data.


def test_data_that_moved_go_on(config, workdir, moved):
    lines = train(dataclasses.replace(config_of(moved), steps=4), workdir)
    assert "resumes at step 2 of 4" in lines[0] and lines[-1].startswith("Exported step 4")
    recorded = store.read_item(workdir, 4, "config")
    assert recorded["data"]["tokenizer"] == str(moved / "tokenizer")


def flip(file, place):
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


def a_shard(directory):
    return min(file for file in directory.iterdir() if "train.array_record" in file.name)


def replace_records(world):
    """Puts the records of another dataset with other records of the same kind in place."""
    other = world / "other"
    numbers = dict.fromkeys(
        ("one", "two", "album", "pairs", "pages", "documents", "test_one", "test_two"), 32
    )
    others = dict.fromkeys(("videos", "held_back", "test_held_out", "frames"), 2)
    pipeline = small.world_pipeline
    pipeline.build(pipeline.WorldRequest(size=pipeline.WorldSize(**numbers, **others)), other)
    (world / "text").rmtree()
    (other / "text").rename(world / "text")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda world: flip(a_shard(world / "text"), -100), r"records\.text\.files(.*\.hash)?: '"),
        (replace_records, r"records\.text\.count: 64 -> 32; records\.text\.files"),
        (
            lambda world: flip(world / "tokenizer" / "tokenizer.model", 40),
            r"tokenizer\.tokenizer\.model: ",
        ),
        (
            lambda world: (world / "tokenizer" / "prompt.json").write_text("{}"),
            r"tokenizer\.prompt\.json: absent -> ",
        ),
    ],
)
def test_data_that_changed_are_refused(config, workdir, moved, never_compiles, change, named):
    change(moved)
    tokenizer = config.data.tokenizer
    config = dataclasses.replace(config_of(moved), steps=4)
    with pytest.MonkeyPatch.context() as patch:
        # one with a changed byte may not load
        patch.setattr(run_lib.resume, "tokenizer_of", lambda _: load_tokenizer(tokenizer, ()))
        line = refusal(config, workdir)
        (workdir / "checkpoints").rmtree()
        without_checkpoints = refusal(config, workdir)
    for text, whose in ((line, "the checkpoints in"), (without_checkpoints, "the export")):
        assert text.startswith(f"The data are not those that {whose} {workdir}")
        assert re.search(named, text)
        assert "or give another --workdir" in text


@pytest.fixture
def older(monkeypatch):
    """Makes checkpoints look as version 0.4.0 wrote them."""
    read = store.read_item

    def without_fingerprints(workdir, step, item):
        found = read(workdir, step, item)
        return {k: v for k, v in found.items() if k not in ("records", "tokenizer", "start")}

    monkeypatch.setattr(store, "read_item", without_fingerprints)


def test_data_of_an_older_checkpoint_are_not_compared_and_a_line_says_so(config, workdir, older):
    lines = train(config, workdir)
    said = "stored no fingerprints of records and tokenizer: nothing shows whether these are the"
    assert sum(said in line for line in lines) == 1


def test_data_of_an_older_checkpoint_must_have_their_paths(workdir, moved, older, never_compiles):
    (workdir / "export").rmtree()
    with pytest.raises(CheckpointError, match=r"data\.datasets\.text\.path: .*world/text"):
        train(config_of(moved), workdir)


def test_a_tokenizer_that_is_replaced_during_the_run_does_not_get_into_the_export(
    moved, tmp_path, monkeypatch
):
    workdir, tokenizer = paths.Path(tmp_path / "run"), moved / "tokenizer" / "prompt.json"
    whole = run_export.write

    def replaced(*arguments, **options):
        tokenizer.write_text("{}")
        return whole(*arguments, **options)

    monkeypatch.setattr(run_export, "write", replaced)
    with pytest.raises(CheckpointError, match=r"\(then -> now\): tokenizer\.prompt\.json: absent"):
        train(config_of(moved), workdir)
    assert not (workdir / "export").exists()
    tokenizer.unlink()
    monkeypatch.undo()
    assert train(config_of(moved), workdir)[-1] == f"Exported step 2 to {workdir}/export."


def test_a_tokenizer_that_is_deleted_during_the_run_says_how_to_export_later(
    moved, tmp_path, monkeypatch
):
    workdir, place = paths.Path(tmp_path / "run"), moved / "tokenizer"
    whole = run_export.write

    def deleted(*arguments, **options):
        place.rename(moved / "kept")
        return whole(*arguments, **options)

    monkeypatch.setattr(run_export, "write", deleted)
    with pytest.raises(CheckpointError) as caught:
        train(config_of(moved), workdir)
    assert re.fullmatch(
        rf"Files of the run cannot be read any more, .*: .*{place}.* All steps are saved. Put the "
        "former files back, and start the same command: it exports.",
        str(caught.value),
    )
    assert not (workdir / "export").exists()
    paths.Path(moved / "kept").rename(place)
    monkeypatch.undo()
    assert train(config_of(moved), workdir)[-1] == f"Exported step 2 to {workdir}/export."


def test_unreported_metrics_of_another_kind_are_one_line(workdir, config):
    """An older step has no manifest, so that nothing else sees it."""
    step = workdir / "checkpoints" / "2"
    (step / "manifest.json").unlink()
    notes = step / "_CHECKPOINT_METADATA"
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"custom_metadata": {}}))
    (step / "unreported").mkdir()
    (step / "unreported" / "metadata").write_text('{"rows": [7]}')
    assert refusal(config, workdir) == (
        f"Checkpoint {step} is damaged: unreported/metadata: got '[7]', expected "
        f"[[STEP, {{METRIC: NUMBER}}], ...]. Move {step} out of WORKDIR/checkpoints to go on from "
        "the step before."
    )


# The workdir, and the processes.


def test_processes_compare_the_record_before_anything_is_compiled(
    config, tmp_path, never_compiles, monkeypatch
):
    compared = []

    def check(facts):
        compared.append(facts)
        raise agreement.AgreementError

    monkeypatch.setattr(agreement, "check", check)
    elsewhere = dataclasses.replace(config.data, num_threads=3)
    for each in (config, dataclasses.replace(config, data=elsewhere)):
        with pytest.raises(agreement.AgreementError):
            train(each, tmp_path / "run")
    first, second = compared
    assert first == second  # threads are a host's own
    assert first["config.seed"] == 1 and first["config.hooks.save_every"] == 2
    assert first["records.text.count"] == 64 and "tokenizer.tokenizer.model" in first
    assert not [name for name in first if "path" in name or name == "config.data.tokenizer"]
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks, on which no start waits for the run before."""
    monkeypatch.setattr(paths.fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    monkeypatch.setattr("flamingo_jax.training.run_id._SETTLE_SECONDS", 0)


@pytest.mark.parametrize("moment", ["before its first update", "before its export"])
def test_of_two_runs_in_one_workdir_one_ends_well(config, tmp_path, no_locks, monkeypatch, moment):
    """The second starts while the first is on its way; checkpoints and export are the second's."""
    workdir, other = paths.Path(tmp_path / "run"), dataclasses.replace(config, seed=5)
    place, name = (run_lib, "batches") if "update" in moment else (run_export, "write")
    whole = getattr(place, name)

    def second_starts(*arguments, **options):
        monkeypatch.setattr(place, name, whole)
        if name == "write":
            (workdir / "checkpoints").rmtree()
        train(other, workdir)
        return whole(*arguments, **options)

    monkeypatch.setattr(place, name, second_starts)
    with pytest.raises(WorkdirTaken, match="belongs to another run now: process .* took it over"):
        train(config, workdir)
    assert card(workdir)["run"]["record"]["seed"] == 5
    assert store.read_item(workdir, 2, "config")["seed"] == 5
    jax.tree.map(
        np.testing.assert_array_equal,
        open_checkpoint(workdir / "export").params,
        open_checkpoint(workdir).params,
    )


def test_a_run_that_is_refused_takes_nothing_over(config, workdir, no_locks, never_compiles):
    """The checkpoints show that the workdir is another run's, which may still go on."""
    (workdir / "export").rmtree()
    before = (workdir / "run.json").read_text()
    with pytest.raises(CheckpointError, match="seed: 1 -> 5"):
        train(dataclasses.replace(config, seed=5), workdir)
    assert json.loads((workdir / "run.json").read_text()) == json.loads(before)
