"""launch/demo.sh, easy_vqa.sh and emoji.sh: what is skipped, what train decides, what is refused.

The programs are a stub that writes down its command. tests/e2e/test_demo.py runs the real ones.
"""

import os
import pathlib
import re
import subprocess

import pytest

from tests.conftest import ROOT

STAGES = ["contrastive", "language_model", "flamingo"]


@pytest.fixture
def demo(launch, tmp_path):
    """Runs the demo; returns its status, the stages that train was called for, and what it said."""

    def run(*options):
        status, called, said = launch("demo.sh", f"--output={tmp_path / 'demo'}", *options)
        workdirs = [re.search(r" --workdir=(\S+)", line) for line in called]
        return status, [pathlib.Path(found[1]).name for found in workdirs if found], said

    return run


def test_what_is_done_is_skipped(demo):
    assert demo("--config.steps=3")[:2] == (0, STAGES)
    assert demo("--config.steps=3")[:2] == (0, [])


def test_other_options_are_refused(demo):
    demo("--config.steps=3")
    status, called, said = demo("--config.steps=4")
    assert (status, called) == (1, []) and "with other options (size=demo seed=1 --con" in said


@pytest.mark.parametrize("change", ["no options", "another config", "an older version"])
def test_train_decides_about_an_export_of_which_the_config_is_not_known(demo, tmp_path, change):
    demo()
    options = tmp_path / "demo" / "options"
    line, config = options.read_text().splitlines()
    assert config.startswith("config ")
    if change == "no options":
        options.unlink()
    else:
        options.write_text(f"{line}\n" + ("config 1 2\n" if change == "another config" else ""))
    assert demo()[:2] == (0, STAGES)
    assert demo()[:2] == (0, [])


@pytest.mark.parametrize("script", ["easy_vqa.sh", "emoji.sh"])
def test_a_run_with_other_options_is_refused(launch, tmp_path, script):
    """A run after one of the smoke size would go on from stages of four updates."""
    packages = tmp_path / "packages"
    for name in ("emoji-datasource-google", "emoji-datasource-twitter"):
        (packages / name).mkdir(parents=True)
    place = f"--packages={packages}" if script == "emoji.sh" else f"--data={tmp_path}"
    options = (script, f"--output={tmp_path / 'run'}", place)
    status, called, said = launch(*options, "--size=smoke")
    assert status == 0 and called, said
    status, called, said = launch(*options)
    assert status == 1 and not called
    assert "holds a run with other options (size=smoke " in said
    assert "Remove it, or give another --output" in said
    assert launch(*options, "--size=smoke")[0] == 0


# A program npm that removes what it was not asked for, as the real one does with --no-save.
NPM = """#!/usr/bin/env bash
while [ "$1" != --prefix ]; do shift; done
cd "$2" 2>/dev/null || { mkdir -p "$2" && cd "$2"; }
shift 2
rm -rf node_modules
for package in "$@"; do
  mkdir -p "node_modules/${package%@*}/color/svg" && touch "node_modules/${package%@*}/package.json"
  echo "$package" >>installed
done
"""


def test_all_packages_are_there_after_npm(launch, tmp_path):
    program = tmp_path / "bin" / "npm"
    program.parent.mkdir()
    program.write_text(NPM)
    program.chmod(0o755)
    with_npm = {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    options = ("emoji.sh", f"--output={tmp_path / 'run'}", "--third")
    status, called, said = launch(*options, **with_npm)
    assert status == 0 and called, said
    packages = tmp_path / "run" / "packages"
    names = {"emoji-datasource-google", "emoji-datasource-twitter", "openmoji"}
    assert {path.name for path in (packages / "node_modules").iterdir()} == names
    assert f"--input={packages}/node_modules" in called[0]
    installed = (packages / "installed").read_text()
    assert launch(*options, **with_npm)[0] == 0
    assert (packages / "installed").read_text() == installed  # not again
    # One that is missing is got again, and the others stay.
    (packages / "node_modules" / "openmoji" / "package.json").unlink()
    assert launch(*options, **with_npm)[0] == 0
    assert {path.parent.name for path in packages.glob("node_modules/*/package.json")} == names


def test_a_third_style_that_is_missing_is_named_before_the_training(launch, tmp_path):
    options = ("emoji.sh", f"--output={tmp_path / 'run'}", f"--packages={tmp_path}")
    status, called, said = launch(*options, "--third")
    assert status == 1 and not called
    assert "--third needs the package openmoji" in said
    assert launch(*options)[0] == 0  # the same output, as the message says


@pytest.mark.parametrize("script", ["demo.sh", "easy_vqa.sh", "emoji.sh"])
def test_options_that_were_wrong_are_not_kept(launch, tmp_path, script):
    """A stage that refuses an option has trained nothing: the next call may have another one."""
    place = [] if script == "demo.sh" else [f"--{'data' if 'vqa' in script else 'packages'}=/"]
    options = (script, f"--output={tmp_path / 'run'}", *place)
    status, _, _ = launch(*options, "--config.steps=many", FAILS="many", STATUS="1")
    assert status == 1
    assert launch(*options, "--config.steps=3")[0] == 0
    status, _, said = launch(*options, "--config.steps=4")
    assert status == 1 and "--config.steps=3" in said


@pytest.mark.parametrize(
    ("given", "expected"), [("~/runs", "{home}/runs"), ("runs", "{here}/runs"), ("/a b", "/a b")]
)
def test_paths_are_those_of_the_user(tmp_path, given, expected):
    """A shell leaves the ~ of --output=~/runs as it is."""
    home, here = tmp_path / "home", tmp_path / "here"
    here.mkdir()
    lines = f"source {ROOT / 'launch' / 'options.sh'}; path_of '--output={given}'"
    done = subprocess.run(
        ["bash", "-euc", lines],
        cwd=here,
        env={**os.environ, "HOME": str(home)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == expected.format(home=home, here=here) + "\n"
