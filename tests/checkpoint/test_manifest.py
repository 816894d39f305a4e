"""checkpoint.manifest: damage of any file is found before it is used, and nothing is lost by it."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import re
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from flamingo_jax.checkpoint import card as card_lib
from flamingo_jax.checkpoint import manifest, sealed_save
from flamingo_jax.checkpoint.arrays import CheckpointError
from flamingo_jax.checkpoint.export import describe_checkpoint, export, open_checkpoint
from flamingo_jax.checkpoint.manifest import DamageError
from flamingo_jax.checkpoint.partial import load_towers
from flamingo_jax.checkpoint.store import Store, check_step, steps
from flamingo_jax.checkpoint.verify import verify
from flamingo_jax.core import paths

CONFIG = {"name": "tiny", "frozen": {}}
STATE = {"trainable": {"lm": {"w": jnp.arange(5000.0)}}, "step": jnp.int32(0)}
LIKE = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), STATE)


def state(step):
    return jax.tree.map(lambda x: x + step, STATE)


@pytest.fixture(scope="module")
def _saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    with Store(workdir, CONFIG) as store:
        for step in (1, 2, 3):
            store.save(step, state(step), {"pages": step})
    export(
        workdir / "export",
        {"lm": {"w": np.arange(5000, dtype=np.float32)}},
        kind="language_model",
        config={},
        tokenizer={"tokenizer.model": b"pieces"},
        preprocessing={},
        step=3,
    )
    return workdir


@pytest.fixture
def workdir(_saved, tmp_path):
    """A run with the steps 1 to 3 and an export, which a test may damage."""
    return pathlib.Path(shutil.copytree(_saved, tmp_path / "run"))


def largest(directory):
    return max(directory.rglob("d/*"), key=lambda file: file.stat().st_size)


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def lengthen(file):
    file.write_bytes(file.read_bytes() + b"x")


def into_a_file(directory):
    shutil.rmtree(directory)
    directory.write_text("")


def emptied(directory):
    shutil.rmtree(directory)
    directory.mkdir()


def into_a_pipe(file):
    file.unlink()
    os.mkfifo(file)


# what happens to the newest step, and what is said of it
DAMAGE = {
    "bit": (lambda step: flip(largest(step)), r"state/.*d/\w+: changed: got hash \w+, expected"),
    "cut": (lambda step: cut(largest(step)), r"state/.*: cut off: got [\d,]+ bytes, expected"),
    "longer": (lambda step: lengthen(largest(step)), r"state/.*: too long: got"),
    "gone": (lambda step: largest(step).unlink(), r"state/.*d/\w+: missing"),
    "list": (lambda step: cut(step / "state" / "_METADATA"), "state/_METADATA: cut off"),
    "positions": (lambda step: (step / "data" / "metadata").write_text(""), "data/metadata: cut"),
    "config": (lambda step: cut(step / "config" / "metadata"), "config/metadata: cut off"),
    "item": (lambda step: shutil.rmtree(step / "state"), "state: missing"),
    "a directory": (
        lambda step: ((step / "data" / "metadata").unlink(), (step / "data" / "metadata").mkdir()),
        "data/metadata: not a file",
    ),
    "a pipe": (lambda step: into_a_pipe(largest(step)), "state/.*: not a file"),
    "a pipe that no manifest lists": (
        lambda step: os.mkfifo(step / "state" / "zarr.json"),
        "state/zarr.json: not a file",
    ),
    "a pipe for a manifest": (
        lambda step: into_a_pipe(step / "manifest.json"),
        "manifest.json: not a file",
    ),
    "no manifest": (lambda step: (step / "manifest.json").unlink(), "manifest.json: missing"),
    "half a manifest": (lambda step: cut(step / "manifest.json"), "manifest.json: .* cut off"),
    "other manifest": (
        lambda step: (step / "manifest.json").write_text('{"files": {"a": {"bytes": "1"}}}'),
        "manifest.json: changed",
    ),
    "manifest of nothing": (
        lambda step: (step / "manifest.json").write_text('{"files": {}}'),
        "manifest.json: .*: it lists no file",
    ),
    "incomplete": (
        lambda step: [(step / name).unlink() for name in ("manifest.json", "_CHECKPOINT_METADATA")],
        "manifest.json: missing",
    ),
    "empty": (emptied, "state: missing"),
    "a file": (into_a_file, "not a directory"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_the_step_before_a_damaged_one_is_taken(workdir, kind):
    damage, reason = DAMAGE[kind]
    newest, lines = workdir / "checkpoints" / "3", []
    damage(newest)
    left = sorted(str(path.relative_to(newest)) for path in newest.rglob("*"))
    with Store(workdir, CONFIG, report=lines.append) as store:
        assert store.latest_step() == 2
        got, positions = store.restore(None, LIKE)
        np.testing.assert_array_equal(got["trainable"]["lm"]["w"], state(2)["trainable"]["lm"]["w"])
        assert positions == {"pages": 2}
        assert store.save(3, state(3), {"pages": 3})
    (line,) = lines
    kept = workdir / "damaged" / "3"
    expected = rf"{newest} is damaged: {reason}.* moved to {kept}, .* from {newest.parent / '2'}\."
    assert re.search(expected, line), line
    assert sorted(str(path.relative_to(kept)) for path in kept.rglob("*")) == left
    with Store(workdir, CONFIG, report=lines.append) as store:
        assert store.latest_step() == 3 and len(lines) == 1


def test_a_step_that_is_damaged_again_keeps_both(workdir):
    for _ in range(2):
        flip(largest(workdir / "checkpoints" / "3"))
        with Store(workdir, CONFIG) as store:
            store.save(3, state(3), {"pages": 3})
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["3", "3-2"]


def test_several_damaged_steps_are_passed_over(workdir):
    lines = []
    for step in ("2", "3"):
        flip(largest(workdir / "checkpoints" / step))
    with Store(workdir, CONFIG, report=lines.append) as store:
        assert store.latest_step() == 1
    assert [line.split(" is damaged")[0][-1] for line in lines] == ["3", "2"]
    assert sorted(path.name for path in (workdir / "damaged").iterdir()) == ["2", "3"]


def test_a_run_that_is_told_to_stops(workdir):
    flip(largest(workdir / "checkpoints" / "3"))
    with pytest.raises(CheckpointError, match=r"3 is damaged: .*step 2 with .*on_damage=previous"):
        Store(workdir, CONFIG, on_damage="fail")
    assert steps(workdir) == [1, 2, 3] and not (workdir / "damaged").exists()


def test_a_run_whose_checkpoints_are_all_damaged_does_not_start_again(workdir):
    for step in (1, 2, 3):
        flip(largest(workdir / "checkpoints" / str(step)))
    expected = r"All checkpoints in .* are damaged, .*\(3: state.*; 2: state.*; 1: state.*\)"
    with pytest.raises(CheckpointError, match=expected) as error:
        Store(workdir, CONFIG)
    assert "\n" not in str(error.value)
    assert steps(workdir) == [1, 2, 3] and not (workdir / "damaged").exists()


def test_a_refused_run_moves_nothing(workdir):
    flip(largest(workdir / "checkpoints" / "3"))
    with pytest.raises(CheckpointError, match="made with another config"):
        Store(workdir, {**CONFIG, "seed": 1})
    assert steps(workdir) == [1, 2, 3] and not (workdir / "damaged").exists()


def test_damage_since_the_store_was_opened_is_found(workdir):
    with Store(workdir, CONFIG) as store:
        flip(largest(workdir / "checkpoints" / "3"))
        with pytest.raises(CheckpointError, match="3 is damaged: state/.*: changed"):
            store.restore(3, LIKE)
        assert store.restore(None, LIKE)[1] == {"pages": 2}


def test_a_file_is_read_once_between_opening_and_restoring(workdir, monkeypatch):
    entry, read = manifest._entry, []
    for file in (workdir / "checkpoints").rglob("*"):
        os.utime(file, (1, 1))  # long ago
    monkeypatch.setattr(manifest, "_entry", lambda file: read.append(str(file)) or entry(file))
    with Store(workdir, CONFIG) as store:
        store.restore(None, LIKE)
    assert len(read) == len(set(read)) and any("/d/" in file for file in read)
    flip(largest(workdir / "checkpoints" / "3"))
    with Store(workdir, CONFIG) as store:
        assert store.latest_step() == 2


def test_a_step_of_an_older_version_is_read_with_a_line(workdir):
    (workdir / "checkpoints" / "3" / "manifest.json").unlink()
    metadata = workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA"
    content = json.loads(metadata.read_text())
    assert content["custom_metadata"].pop("manifest") == "manifest.json"
    metadata.write_text(json.dumps(content))
    lines = []
    with Store(workdir, CONFIG, report=lines.append) as store:
        assert store.restore(None, LIKE)[1] == {"pages": 3}
    assert lines == [
        f"Checkpoint {workdir}/checkpoints/3 cannot be checked: it has no manifest.json."
    ]
    cut(workdir / "checkpoints" / "3" / "config" / "metadata")
    with Store(workdir, CONFIG, report=lines.append) as store:
        assert store.latest_step() == 2 and "not a JSON object" in lines[-1]


def test_damage_next_to_the_checkpoints_is_no_checkpoint(workdir):
    """It is there if checkpoints/ is a link to another file system."""
    there = workdir / "checkpoints"
    shutil.copytree(there / "3", there / "damaged" / "3")
    with Store(workdir, CONFIG) as store:
        assert store.latest_step() == 3
        assert store.save(4, state(4), {"pages": 4})
    assert steps(workdir)[-1] == 4 and (there / "damaged" / "3" / "manifest.json").exists()


def test_a_pipe_in_a_step_without_a_manifest_is_damage(workdir):
    """Nothing is hashed there, and orbax would wait for ever."""
    for name in ("manifest.json", "_CHECKPOINT_METADATA"):
        (workdir / "checkpoints" / "3" / name).unlink()
    (workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_text("{}")
    into_a_pipe(largest(workdir / "checkpoints" / "3"))
    with pytest.raises(DamageError, match="state/.*: not a file"):
        check_step(workdir, 3)


def test_an_export_of_an_older_version_is_one_line_of_the_first_process(
    workdir, monkeypatch, caplog
):
    (workdir / "export" / "manifest.json").unlink()
    monkeypatch.setattr(card_lib, "_unchecked", set())
    for index in (1, 0, 0):
        monkeypatch.setattr(jax, "process_index", lambda index=index: index)
        assert card_lib.check_files(workdir / "export", {}) is None
        lines = [record.getMessage() for record in caplog.records]
        assert sum("cannot be checked" in line for line in lines) == (index == 0)


def test_a_file_that_may_not_be_read_is_not_damaged(workdir, monkeypatch):
    def refused(file):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr(manifest, "_entry", refused)
    with pytest.raises(CheckpointError, match="cannot be read: .*Permission denied"):
        Store(workdir, CONFIG)
    assert steps(workdir) == [1, 2, 3]


def test_every_file_of_a_step_and_of_an_export_is_checked(workdir):
    """One bit of each file, in turn."""
    for place, check in (
        (workdir / "checkpoints" / "3", lambda: check_step(workdir, 3)),
        (workdir / "export", lambda: open_checkpoint(workdir / "export")),
    ):
        names = list(manifest.files(paths.Path(place)))
        assert len(names) > 6
        check()
        for name in names:
            content = (place / name).read_bytes()
            flip(place / name)
            with pytest.raises(CheckpointError, match=re.escape(name)):
                check()
            (place / name).write_bytes(content)
        check()
        flip(place / "manifest.json")
        with pytest.raises(CheckpointError):
            check()


@pytest.mark.parametrize("kind", ["bit", "cut", "gone", "a pipe"])
def test_a_damaged_export_is_noticed_however_it_is_opened(workdir, kind):
    DAMAGE[kind][0](workdir / "export")
    place = workdir / "export"
    w = {"w": jax.ShapeDtypeStruct((5000,), jnp.float32)}
    for use in (
        lambda: open_checkpoint(place),
        lambda: open_checkpoint(place, placement=lambda path, stored: stored),
        lambda: load_towers({"flamingo/lm": w}, {"flamingo/lm": (place, "lm")}),
    ):
        with pytest.raises(CheckpointError, match=r"is damaged: weights/.*Copy it again, or make"):
            use()
    describe_checkpoint(place)  # reads no weight
    flip(place / "model.json")
    with pytest.raises(CheckpointError, match=r"is damaged: .*model\.json"):
        describe_checkpoint(place)


def test_a_damaged_step_is_not_opened(workdir):
    flip(largest(workdir / "checkpoints" / "3"))
    with pytest.raises(CheckpointError, match=r"3 is damaged: .* Steps \[1, 2\] are there too"):
        open_checkpoint(workdir)
    assert not (workdir / "damaged").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda export: cut(export / "model.json"),
        lambda export: (export / "model.json").write_text("null"),
        lambda export: (export / "model.json").unlink(),
        lambda export: flip(largest(export)),
        lambda export: (export / "tokenizer.model").unlink(),
        emptied,
        into_a_file,
        lambda export: (shutil.rmtree(export), export.symlink_to("nowhere")),
    ],
)
def test_a_damaged_export_of_a_run_is_kept_and_made_again(workdir, damage):
    lines, place = [], workdir / "export"
    assert card_lib.whole(place, report=lines.append)["step"] == 3 and not lines
    damage(place)
    assert card_lib.whole(place, report=lines.append) is None
    assert re.search(f"{place} is damaged: .*moved to {workdir}/damaged/export, and", lines[0])
    assert place.name not in {path.name for path in workdir.iterdir()}
    assert [path.name for path in (workdir / "damaged").iterdir()] == ["export"]
    assert card_lib.whole(place, report=lines.append) is None and len(lines) == 1


def test_verify_says_a_line_for_each_checkpoint(workdir):
    flip(largest(workdir / "checkpoints" / "2"))
    (workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_text("{}")
    (workdir / "checkpoints" / "3" / "manifest.json").unlink()
    found = {str(each.path.relative_to(workdir)): each for each in verify(workdir)}
    states = {path: each.state for path, each in found.items()}
    assert states == {
        "checkpoints/1": "ok",
        "checkpoints/2": "damaged",
        "checkpoints/3": "no manifest",
        "export": "ok",
    }
    assert re.fullmatch(r"\d+ files, [\d,]+ bytes", found["checkpoints/1"].detail)
    assert re.match(r"state/.*: changed", found["checkpoints/2"].detail)
    (one,) = verify(workdir / "checkpoints" / "2")
    assert one == found["checkpoints/2"]
    cut(workdir / "export" / "model.json")
    (one,) = verify(workdir / "export")
    assert one.detail.startswith("model.json: cut off")
    for name in ("model.json", "manifest.json"):
        (workdir / "export" / name).write_text("5")
        (one,) = verify(workdir / "export")
        assert one.state == "damaged" and name in one.detail
    with pytest.raises(CheckpointError, match="There is no checkpoint at"):
        list(verify(workdir / "nothing"))


def test_verify_follows_a_run_to_its_towers(workdir, tmp_path):
    config = {**CONFIG, "frozen": {"lm": {"path": str(workdir / "export")}}}
    with Store(tmp_path / "larger", config) as store:
        store.save(1, STATE, {})
    flip(largest(workdir / "export"))
    states = [(each.state, each.path.name) for each in verify(tmp_path / "larger")]
    assert states == [("ok", "1"), ("damaged", "export")]


def test_verify_as_a_program(workdir, run_program):
    flip(largest(workdir / "checkpoints" / "2"))
    done = run_program(
        "-m", "flamingo_jax.checkpoint", "verify", workdir, f"{workdir}/export", status=1
    )
    words = [line.split()[0] for line in done.stdout.splitlines()]
    assert words == ["ok", "damaged", "ok", "ok", "ok"]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("content", ["", "[]", '{"custom_metadata": 3}', '{"metrics": 5}'])
def test_damaged_notes_of_orbax_are_no_reason_to_stop(workdir, content):
    """Orbax reads _CHECKPOINT_METADATA of all steps when it starts, and nobody needs it."""
    (workdir / "checkpoints" / "3" / "_CHECKPOINT_METADATA").write_text(content)
    lines = []
    with Store(workdir, CONFIG, report=lines.append) as store:
        assert store.restore(None, LIKE)[1] == {"pages": 3}
        assert store.save(4, state(4), {"pages": 4})
    assert lines == [
        f"{workdir}/checkpoints/3/_CHECKPOINT_METADATA is damaged. It is moved to "
        f"{workdir}/damaged/_CHECKPOINT_METADATA, and is made again."
    ]


@pytest.mark.parametrize("target", ["/nowhere", "config.json", "other"])
def test_a_link_in_the_place_of_a_save_is_moved_and_the_run_goes_on(workdir, target):
    """Orbax cannot make its temporary directory there."""
    (workdir / "other").mkdir()
    place = workdir / "checkpoints" / "4.orbax-checkpoint-tmp"
    place.symlink_to(workdir / target)
    lines = []
    with Store(workdir, CONFIG, report=lines.append) as store:
        assert store.save(4, state(4), {"pages": 4})
    kept = workdir / "damaged" / place.name
    assert lines == [f"{place} is a link, where a step is saved first. It is moved to {kept}."]
    assert kept.is_symlink() and steps(workdir)[-1] == 4 and check_step(workdir, 4)
    assert (workdir / "other").is_dir() and (workdir / "config.json").is_file()


def test_a_damaged_copy_of_the_config_is_made_again(workdir):
    for damage in (cut, lambda file: (file.unlink(), file.mkdir())):
        damage(workdir / "config.json")
        Store(workdir, CONFIG).close()
        assert json.loads((workdir / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize(
    "name", ["not\udcffutf8", "lr[1e-3]", "a\\b", "what?*", "a]b", "a\nb", "{a,b}#%"]
)
def test_any_name_of_a_directory_works(tmp_path, name):
    place = tmp_path / name
    with Store(place, CONFIG) as store:
        store.save(1, STATE, {"pages": 1})
        store.save(2, state(2), {"pages": 2})
    with Store(place, CONFIG) as store:
        got, _ = store.restore(None, LIKE)
        assert store.save(3, state(3), {"pages": 3})
    np.testing.assert_array_equal(got["trainable"]["lm"]["w"], state(2)["trainable"]["lm"]["w"])
    assert steps(place) == [1, 2, 3]
    weights = {"lm": {"w": np.arange(8, dtype=np.float32)}}
    written = export(
        place / name, weights, kind="vision", config={}, tokenizer=None, preprocessing={}, step=1
    )
    np.testing.assert_array_equal(open_checkpoint(written).params["lm"]["w"], weights["lm"]["w"])


def test_errors_of_orbax_are_one_line(workdir, caplog):
    """Its threads and asyncio log tracebacks of hundreds of lines."""
    for step in (workdir / "checkpoints").iterdir():
        (step / "manifest.json").unlink()
        (step / "_CHECKPOINT_METADATA").write_text("{}")
        cut(largest(step / "state"))
    with (
        Store(workdir, CONFIG) as store,
        caplog.at_level(logging.DEBUG),
        pytest.raises(CheckpointError, match="are damaged or incomplete") as error,
    ):
        store.restore(3, LIKE)
    assert "\n" not in str(error.value)
    assert not [record for record in caplog.records if record.exc_info]


def test_a_full_disk_is_one_line_with_its_reason(workdir, caplog):
    """The checkpoints before are whole, and the run may go on."""
    large = {"x": jax.random.normal(jax.random.key(0), (100_000,))}
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Store(workdir, CONFIG) as store:
        with pytest.raises(CheckpointError) as error:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
            try:
                store.save(4, large, {})
                store.wait()
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        message = f"Cannot save to {workdir}/checkpoints: .*File too large.* go on from step 3 when"
        assert re.fullmatch(f"{message} this is mended.", str(error.value))
        assert not [record for record in caplog.records if record.exc_info]
        assert store.save(4, large, {})
    assert steps(workdir)[-1] == 4 and check_step(workdir, 4)


def test_a_clock_that_jumps_during_a_save_does_not_end_it(workdir, monkeypatch):
    hash_files, clock = manifest.entries, time.time

    def hash_later(*args):
        monkeypatch.setattr(time, "time", lambda: clock() + 7200)
        time.sleep(0.3)  # what waits for this looks at the clock meanwhile
        return hash_files(*args)

    monkeypatch.setattr(manifest, "entries", hash_later)
    with Store(workdir, CONFIG) as store:
        assert store.save(4, STATE, {})
        store.wait()
    assert steps(workdir)[-1] == 4 and check_step(workdir, 4)


def test_a_save_of_which_a_part_is_not_there_is_no_checkpoint(tmp_path, monkeypatch):
    """As if another process saved to a disk of its own."""
    with Store(tmp_path, CONFIG) as store:
        store.save(1, STATE, {})
        store.wait()
        seal = sealed_save.seal

        def of_two(step):
            with monkeypatch.context() as patch:
                patch.setattr(jax, "process_count", lambda: 2)
                seal(step)

        monkeypatch.setattr(sealed_save, "seal", of_two)
        store.save(2, STATE, {})
        with pytest.raises(CheckpointError, match="Process 1 wrote no part of step 2"):
            store.wait()
    assert steps(tmp_path) == [1]
