"""launch/tpu_worker.sh on one host: the log as lines, how a job is ended, what its state is."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tests.launch.pod import PATIENCE, wait_for

# What the programs of these tests do is their first argument.
PROGRAM = """
import os, signal, subprocess, sys, time
what = sys.argv[1]
if what == "saves":
    signal.signal(signal.SIGTERM, lambda *_: (print("saved at step 7", flush=True), sys.exit(75)))
if what == "slow":  # a second signal ends it unsaved
    def save(*_):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        print("saves", flush=True)
        time.sleep(3)
        sys.exit(75)
    signal.signal(signal.SIGTERM, save)
if what == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if what == "parent":
    subprocess.Popen(["sleep", "1000"])
    sys.exit(3)
print("ready", flush=True)
time.sleep(1000)
"""


class Worker:
    """A host: its home is a directory of the test.

    Attributes:
        kept: the directory of the script.
        log: the log.
    """

    def __init__(self, home):
        self.kept, self.log = home / "flamingo_pod", home / "flamingo_pod" / "log"
        (home / "bin").mkdir()
        self.kept.mkdir()
        (home / "bin" / "python").symlink_to(sys.executable)
        (home / "program.py").write_text(PROGRAM)
        path = f"{os.path.dirname(sys.executable)}:/usr/bin:/bin"
        self.variables = {"HOME": str(home), "PATH": path, "HOSTNAME": "t1v-n-0123-w-3"}
        self.variables |= {"FLAMINGO_VENV": str(home), "PYTHONPATH": str(home)}

    def command(self, *arguments):
        return [str(ROOT / "launch" / "tpu_worker.sh"), *map(str, arguments)]

    def run(self, *arguments, status=0):
        """Runs the script; returns stdout and stderr."""
        done = subprocess.run(
            self.command(*arguments),
            env=self.variables,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PATIENCE,
            check=False,
        )
        output = (done.stdout + done.stderr).decode(errors="replace")
        assert done.returncode == status, output
        return output

    def start(self, what):
        self.run("start", "job-1", "--", "program", what)
        if what != "parent":
            wait_for(lambda: "ready" in self.log.read_text().split("==")[-1])

    def state(self):
        return self.run("status").split("|")[0].removeprefix("worker 3: ")


@pytest.fixture
def worker(tmp_path):
    worker = Worker(tmp_path)
    yield worker
    worker.run("stop", 0)


def test_a_log_that_was_written_for_a_terminal(worker):
    worker.log.write_bytes(
        b"begin\n\n\x1b[32mgreen\x1b[0m\r\n 10%|#  | 1/10\r 20%|## | 2/10\r"
        b"a\x00b\x01\xff" + b"x" * 5000 + b"\nthe last has no end"
    )
    lines = worker.run("log", 100).splitlines()
    assert lines[:4] == ["[3] begin", "[3] green", "[3]  10%|#  | 1/10", "[3]  20%|## | 2/10"]
    assert lines[4].startswith("[3] ab") and len(lines[4]) == 4 + 4000
    assert lines[5:] == ["[3] the last has no end"]
    worker.log.write_bytes(b"".join(b"step %d of 9\r" % step for step in range(1000)))
    assert worker.run("log", 2).splitlines() == ["[3] step 998 of 9", "[3] step 999 of 9"]


def test_follow_goes_on_after_a_restart_and_a_new_log(worker, tmp_path):
    shown = tmp_path / "shown"
    worker.log.write_text("one\rtwo\rthree\rhalf")
    with shown.open("w") as out:
        command = worker.command("log", 2, "follow")
        follower = subprocess.Popen(
            command, env=worker.variables, stdout=out, start_new_session=True
        )
    try:
        wait_for(lambda: shown.read_text() == "[3] two\n[3] three\n")
        with worker.log.open("a") as log:
            log.write(" a line\rstep 5 of 9\r")
        wait_for(lambda: shown.read_text().endswith("[3] half a line\n[3] step 5 of 9\n"))
        worker.log.rename(worker.kept / "log.1")
        worker.log.write_text("a new log\r")
        wait_for(lambda: shown.read_text().endswith("step 5 of 9\n[3] a new log\n"))
    finally:
        os.killpg(follower.pid, 9)
        follower.wait()


def test_stop_lets_the_program_save(worker):
    worker.start("saves")
    assert worker.state() == "running"
    assert worker.run("stop") == ""
    assert worker.state() == "ended 75"
    assert worker.run("status").rstrip().endswith("|7|saved at step 7")
    assert worker.run("status").split("|")[1] == "job-1"


def test_stop_kills_what_does_not_end(worker):
    worker.start("deaf")
    said = worker.run("stop", 1)
    assert said == ("worker 3: the program did not end within 1 s of SIGTERM, and was killed\n")
    assert worker.state() == "killed"


def test_stop_asks_once(worker):
    """The call of a script that was interrupted goes on, and the next call waits with it."""
    worker.start("slow")
    first = subprocess.Popen(worker.command("stop"), env=worker.variables)
    wait_for(lambda: "saves" in worker.log.read_text())
    first.kill()
    first.wait()
    worker.run("stop")
    assert worker.state() == "ended 75"


def test_no_process_of_the_program_is_left(worker):
    worker.start("parent")
    wait_for(lambda: worker.state() == "ended 3")
    session = (worker.kept / "pid").read_text().split()[0]
    wait_for(lambda: not _alive(int(session)))


def _alive(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


def test_states(worker):
    assert worker.state() == "none"
    (worker.kept / "pid").write_text("1 another-boot\n")
    assert worker.state() == "rebooted"
    (worker.kept / "status").write_text("")  # a full disk
    assert worker.state() == "rebooted"
    worker.log.write_text(
        "== now: python\nsmall step 70 of 90\n== later: python\n"
        "resumes at step 50\nsmall:  67% 61/90, loss 1.2\nsmall step 60: eval/a 0.5\nNo | yes\n"
    )
    (worker.kept / "status").write_text("1\n")
    assert worker.run("status").endswith("|61|No | yes\n")


def test_a_large_log_is_put_aside_at_the_next_start(worker):
    worker.variables["FLAMINGO_LOG_BYTES"] = "1000"
    for start in range(7):
        worker.log.write_text(f"{start}" * 2000)
        worker.start("parent")
        wait_for(lambda: worker.state() == "ended 3")
    logs = sorted(path.name for path in worker.kept.glob("log*"))
    assert logs == ["log", "log.1", "log.2", "log.3", "log.4", "log.5"]
    assert (worker.kept / "log.1").read_text()[0] == "6"
    assert worker.log.stat().st_size < 1000


def test_a_full_disk_is_one_line(worker):
    worker.log.symlink_to("/dev/full")
    said = worker.run("start", "job-1", "--", "program", "parent", status=1)
    assert said.splitlines()[-1].startswith(f"error: worker 3: cannot write {worker.log}. Is the")


def test_of_two_that_start_a_job_one_is_refused(worker):
    (worker.kept / "id").write_text("job-2\n")
    said = worker.run("start", "job-1", "--", "program", "parent", status=1)
    assert said == "error: worker 3: this slice was given to another job, job-2\n"
    assert worker.state() == "none"
