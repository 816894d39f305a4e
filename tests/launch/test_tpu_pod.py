"""launch/tpu_pod.sh: what it refuses, what it runs, and how it handles failing slices and jobs.

A replacement of gcloud (gcloud.py) refuses flags that the real one does not have. The program is a
small one in a miniature clone. tests/distributed/test_tpu_pod.py trains on a simulated pod.
"""

import json
import os
import shlex
import shutil
import subprocess

import pytest

from tests.conftest import ROOT
from tests.launch import gcloud
from tests.launch.pod import PATIENCE, TRAIN, starts, wait_for

PROGRAM = ["--", "--config=configs/tiny.py:flamingo", "--workdir=gs://bucket/run"]
TRAIN_TINY = "train --name=pod -- --config=configs/tiny.py"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "no action"),
        ("begin", "no action begin"),
        ("create train", "two actions"),
        ("create", "no name"),
        ("create --name=pod", "no accelerator type"),
        ("create '--name=a pod' --accelerator_type=v4-8", "--name=a pod"),
        ("create --name=-pod --accelerator_type=v4-8", "--name=-pod"),
        ("create --name=pod --accelerator_type=v4", "--accelerator_type=v4"),
        ("create --name=pod --accelerator_type=v9x-8", "no runtime version is known for v9x-8"),
        ("create --name=pod --accelerator_type=v4-8 '--zone=us central'", "--zone=us central"),
        ("create --name=pod --accelerator_type=v4-8 --spot --reserved", "exclude each other"),
        ("create --name=pod --acelerator_type=v4-8", "does not know --acelerator_type=v4-8"),
        ("train --name=pod", "needs the flags of the program"),
        ("train --name=pod -- --workdir=gs://b/run", "no config"),
        (
            "train --name=pod -- --config=configs/none.py --workdir=gs://b/run",
            "configs/none.py is not",
        ),
        ("train --name=pod -- --config=/etc/hosts --workdir=gs://b/run", "/etc/hosts is not"),
        (TRAIN_TINY, "no --workdir"),
        (f"{TRAIN_TINY} --workdir=runs/a", "--workdir=runs/a is not"),
        (f"{TRAIN_TINY} --workdir=/home/me/a", "--workdir=/home/me/a is"),
        (f"{TRAIN_TINY} --workdir=gs://b", "--workdir=gs://b is not"),
        (
            "train --name=pod --shared=/nfs -- --config=configs/tiny.py --workdir=/nfs/../a",
            "is not a",
        ),
        (
            "evaluate --name=pod -- --config=configs/evaluate.py --output=gs://b/o",
            "no --checkpoint",
        ),
        (
            shlex.join(["train", "--name=pod", "--mount=gs://b:/mnt", *PROGRAM]),
            "expected the bucket's name alone",
        ),
        ("logs --name=pod --worker=last", "--worker=last"),
        ("logs --name=pod --slices=2 --slice=last", "--slice=last: expected a number, or all"),
        ("logs --name=pod --slices=2 --slice=2", "--slice=2: expected less than --slices=2"),
        ("logs --name=pod --slice=1", "--slice=1: expected less than --slices=1"),
        ("create --name=pod --slices=0", "--slices=0: expected a number, at least 1"),
        ("logs --name=pod --lines=08", "--lines=08: expected a number"),
        ("create --name=pod --poll=0.0", "--poll=0.0: expected seconds, more than 0"),
        ("create --name=pod --patience=10s", "--patience=10s: expected whole seconds"),
        ("create --name=pod --patience=", "--patience=: expected whole seconds"),
        ("train --name=pod --mount=bucket", "expected --mount=BUCKET:DIRECTORY"),
        ("train --name=pod --shared=nfs", "expected a directory from /"),
        ("train --name=pod --env=A", "expected --env=NAME=VALUE"),
    ],
)
def test_what_is_wrong_is_one_line(pod, arguments, message):
    script = ROOT / "launch" / "tpu_pod.sh"
    done = subprocess.run(
        [str(script), *shlex.split(arguments)],
        env=pod.variables,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 1 and done.stdout == ""
    assert (
        len(done.stderr.splitlines()) == 1
        and done.stderr.startswith("error: ")
        and message in done.stderr
    )
    assert not [call for call in pod.calls() if "describe" not in call]


def test_without_gcloud_nothing_is_tried(pod, tmp_path):
    for name in ("bash", "env", "dirname"):
        (tmp_path / "bare").mkdir(exist_ok=True)
        (tmp_path / "bare" / name).symlink_to(shutil.which(name))
    pod.variables["PATH"] = str(tmp_path / "bare")
    assert (
        "there is no gcloud here" in pod.run("create", "--accelerator_type=v4-8", status=1).stderr
    )


def test_help_lists_every_option(pod):
    script = (ROOT / "launch" / "tpu_pod.sh").read_text()
    shown = pod.run("create", "--help").stdout
    options = {
        line.split("=")[0].split(")")[0].strip()
        for line in script.splitlines()
        if line.startswith("    --")
    }
    assert len(options) > 15
    assert not [
        option
        for name in options
        for option in name.split(" | ")
        if option != "--" and option not in shown
    ]


def commands(done):
    """Returns the gcloud commands that --dry_run printed, as lists of arguments."""
    return [
        shlex.split(line)[1:] for line in done.stdout.splitlines() if line.startswith("gcloud ")
    ]


@pytest.mark.parametrize("action", ["create", "train", "evaluate", "logs", "delete"])
def test_dry_run_prints_commands_that_gcloud_knows_and_runs_none(pod, golden, action):
    evaluate = [
        "--config=configs/evaluate.py",
        "--checkpoint=gs://bucket/run",
        "--output=gs://bucket/a report",
    ]
    options = {
        "create": [
            "--accelerator_type=v4-3072",
            "--reserved",
            "--network=n",
            "--service_account=a@b.c",
            "--internal_ips",
        ],
        "train": [
            "--mount=records:/mnt/records",
            "--env=LIBTPU_INIT_ARGS=--a=1 --b=2",
            *PROGRAM,
            "--config.name=it's",
        ],
        "evaluate": ["--", *evaluate],
        "logs": ["--worker=all", "--follow"],
        "delete": ["--quiet"],
    }
    done = pod.run(action, "--project=my-project", "--dry_run", *options[action])
    assert pod.calls() == []
    assert commands(done)
    for command in commands(done):
        gcloud.parse(command)
        shell = next(
            (flag.partition("=")[2] for flag in command if flag.startswith("--command=")), ""
        )
        assert subprocess.run(["bash", "-n", "-c", shell], check=False).returncode == 0
    golden(
        f"launch/tpu_pod_{action}.txt",
        done.stdout.replace(str(ROOT), "ROOT").replace(pod.variables.get("TMPDIR", "/tmp"), "TMP"),
    )


@pytest.mark.parametrize(
    ("accelerator_type", "image"),
    [
        ("v3-32", "tpu-ubuntu2204-base"),
        ("v4-3072", "tpu-ubuntu2204-base"),
        ("v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-128", "v2-alpha-tpuv5"),
        ("v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_the_image_is_that_of_the_type(pod, accelerator_type, image):
    """https://cloud.google.com/tpu/docs/runtimes."""
    (_, command) = commands(
        pod.run("create", "--dry_run", f"--accelerator_type={accelerator_type}")
    )
    assert {f"--runtime-version={image}", "--node-id=pod"} <= set(command)


@pytest.mark.parametrize("action", ["create", "train", "logs"])
def test_several_slices_are_the_nodes_of_one_request(pod, action):
    """https://cloud.google.com/tpu/docs/multislice-introduction."""
    options = {
        "create": ["--accelerator_type=v4-3072"],
        "train": PROGRAM,
        "logs": ["--slice=1", "--worker=3"],
    }
    done = pod.run(action, "--slices=2", "--dry_run", *options[action])
    for command in commands(done):
        gcloud.parse(command)
    if action == "create":
        assert {"--node-count=2", "--node-prefix=pod"} <= set(commands(done)[-1])
    if action == "train":
        *_, stop, copy, install, start = commands(done)
        for command in (stop, copy, install, start):
            assert command[2] == "queued-resources"
            assert {"--node=all", "--worker=all", "--batch-size=all"} <= set(command)
    if action == "logs":
        (command,) = commands(done)
        assert command[2:4] == ["queued-resources", "ssh"]
        assert {"--node=1", "--worker=3"} <= set(command)


def test_a_job_runs_on_the_workers_of_all_slices(pod, clone, tmp_path):
    (pod.state / "num_workers").write_text("2")  # of each slice
    pod.run("create", "--accelerator_type=v4-16", "--slices=2")
    assert len(pod.homes()) == 4
    job = [f"--shared={tmp_path}", "--", "--config=configs/a.py", f"--workdir={tmp_path / 'work'}"]
    try:
        said = pod.run("train", "--slices=2", *job, root=clone).stderr
        assert "logs --name=pod --slices=2" in said
        wait_for(lambda: starts(tmp_path) == [["none"]] * 4)
        shown = pod.run("logs", "--slices=2", "--slice=1", "--worker=all", "--lines=1", root=clone)
        assert sorted(shown.stdout.splitlines()) == [
            "[0] a line of the log",
            "[1] a line of the log",
        ]
    finally:
        pod.run("delete", "--slices=2", "--quiet")
    assert not (pod.state / "workers").exists()


def test_slices_of_which_one_is_preempted_are_requested_again(pod):
    (pod.state / "num_workers").write_text("1")
    (pod.state / "node").write_text("READY PREEMPTED READY")
    said = pod.run("create", "--accelerator_type=v4-8", "--slices=2").stderr
    assert "pod is ACTIVE, but its node is PREEMPTED; asking for it anew" in said
    assert [call[3] for call in pod.calls()].count("create") == 2
    looked = [call[4] for call in pod.calls() if call[2:4] == ["tpu-vm", "describe"]]
    assert looked == ["pod-0", "pod-1", "pod-0", "pod-1"]


def test_the_stand_in_refuses_what_gcloud_does_not_know(pod):
    for arguments in (["--worker=all"], ["--acelerator-type=v4-8"], ["--spot=yes"], ["--node-id"]):
        create = ["compute", "tpus", "queued-resources", "create", "pod", "--zone=us-central2-b"]
        done = subprocess.run(
            [str(pod.state / "here" / "gcloud"), *create, *arguments],
            env=pod.variables,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 2


@pytest.mark.parametrize("tier", ["--spot", "--reserved", None])
def test_create_asks_and_waits(pod, tier):
    (pod.state / "future").write_text("WAITING_FOR_RESOURCES PROVISIONING PROVISIONING ACTIVE")
    said = pod.run("create", "--accelerator_type=v4-32", *([tier] if tier else [])).stderr
    assert [line.split()[1] for line in said.splitlines()] == [
        "WAITING_FOR_RESOURCES",
        "PROVISIONING",
        "ACTIVE",
    ]
    flags = json.loads((pod.state / "resource.json").read_text())["flags"]
    assert {"--spot", "--reserved"} & set(flags) == ({tier} if tier else set())
    pod.run("create", "--accelerator_type=v4-32")  # it is there
    assert [call[3] for call in pod.calls()].count("create") == 1


def test_create_says_when_it_will_not_come(pod):
    (pod.state / "future").write_text("PROVISIONING FAILED")
    said = pod.run("create", "--accelerator_type=v4-32", status=1).stderr
    assert said.splitlines()[-1].startswith(
        "error: pod is FAILED and will not come. The reason: gcloud compute tpus"
    )
    again = pod.run("create", "--accelerator_type=v4-32").stderr
    assert "pod is FAILED; asking for it anew" in again and "ACTIVE" in again


def test_a_request_that_gcloud_refuses(pod):
    pod.variables["ZONE"] = ""
    script = str(ROOT / "launch" / "tpu_pod.sh")
    done = subprocess.run(
        [script, "create", "--name=pod", "--accelerator_type=v4-8"],
        env=pod.variables,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "[zone] is not currently set" in done.stderr


def test_train_needs_the_slice(pod):
    said = pod.run("train", *PROGRAM, status=1).stderr
    assert said.splitlines() == [
        "error: pod is NONE, not ACTIVE: launch/tpu_pod.sh create (or train --watch, which asks "
        "for it)"
    ]


def test_train_ships_what_lies_here_and_outlives_the_script(pod, clone, job, tmp_path):
    (clone / "of mine.secret").write_text("not for the workers")
    (pod.state / "buckets" / "records").mkdir()
    (pod.state / "buckets" / "records" / "a").write_text("a record")
    options = ["--mount=records:data/records", "--env=GREETING=first", *job]
    pod.run("train", *options, root=clone)
    wait_for(lambda: starts(tmp_path) == [["first"]] * 4)
    leaders = [int((home / "flamingo_pod" / "pid").read_text().split()[0]) for home in pod.homes()]
    assert [os.getsid(leader) for leader in leaders] == leaders, (
        "a session of its own: no hang-up reaches it"
    )

    (clone / "old file.txt").unlink()
    (clone / "new file.txt").write_text("new")
    options[1] = "--env=GREETING=second"
    pod.run("train", *options, root=clone)
    wait_for(lambda: starts(tmp_path) == [["first", "second"]] * 4)
    for leader in leaders:
        with pytest.raises(ProcessLookupError):
            os.killpg(leader, 0)
    for home in pod.homes():
        shipped = {path.name for path in (home / "flamingo_jax").iterdir()}
        assert {"new file.txt", "setup.py", ".venv"} <= shipped
        assert (home / "flamingo_jax" / "flamingo_jax" / "train.py").read_text() == TRAIN
        assert not {"old file.txt", "of mine.secret", ".git"} & shipped
        assert (home / "data" / "records" / "a").read_text() == "a record"
        assert len((home / "pip").read_text().splitlines()) == 3
    assert (
        pod.run("logs", "--worker=3", "--lines=1", root=clone).stdout == "[3] a line of the log\n"
    )


def test_a_wrong_bucket_stops_before_anything_starts(pod, clone, job, tmp_path):
    said = pod.run("train", "--mount=nowhere:data", *job, root=clone, status=1).stderr
    assert (
        "error: worker 0: cannot mount nowhere" in said and "bucket nowhere does not exist" in said
    )
    assert said.splitlines()[-1].startswith("error: not all workers of pod have started")
    assert starts(tmp_path) == [[], [], [], []]


def test_delete(pod):
    pod.run("create", "--accelerator_type=v4-32")
    pod.run("delete", "--quiet")
    assert not (pod.state / "resource.json").exists()
    assert pod.calls()[-1][3:] == ["delete", "pod", "--zone=us-central2-b", "--force", "--quiet"]
    assert "NOT_FOUND" in pod.run("delete", status=1).stderr
