"""A worker that dies or is stuck ends the run, and the error names what it was reading."""

import os
import subprocess
import sys
import textwrap

import pytest

from data_pipelines import watchdog

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")


def program(body):
    """Runs a supervised program in a process of its own; returns (status, standard error)."""
    source = f"""
        import os, re, signal, sys
        from data_pipelines import watchdog
        def main():
            {body}
        watchdog.supervised(main)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr


READING = "with watchdog.noted('a.tar', {}) as note: note.count(); watchdog.at('x.jpg'); {}"


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (
            READING.format(900, "os.kill(os.getpid(), signal.SIGKILL)"),
            1,
            "ended by SIGKILL while it read a.tar, x.jpg (after 1 records of it). Nothing was",
        ),
        (
            READING.format(900, "os.kill(os.getpid(), signal.SIGSEGV)"),
            1,
            "ended by SIGSEGV while it read a.tar, x.jpg",
        ),
        # The expression keeps the lock of the interpreter for longer than the universe is old.
        (
            READING.format(0.5, "re.match('(a|aa)+$', 'a' * 200 + 'b')"),
            1,
            "s of CPU time in a.tar, x.jpg (after 1 records of it)",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", 1, "the program was ended by SIGKILL. "),
        ("sys.exit('a message')", 1, "a message\n"),
        ("sys.exit(3)", 3, ""),
        ("print('fine')", 0, ""),
    ],
)
def test_the_program_says_what_it_was_reading(body, status, message):
    found, error = program(body)
    assert (found, message in error) == (status, True), error
    assert "Traceback" not in error
    assert error.count("\n") <= 1


def test_the_program_ends_with_the_process_that_watches_it(tmp_path):
    source = f"""
        import os, signal, time
        from data_pipelines import watchdog
        def main():
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(30)
            open({str(tmp_path / "late")!r}, "w")
        watchdog.supervised(main)
    """
    env = {**os.environ, "TMPDIR": str(tmp_path)}  # the notes stay there
    # communicate() returns when no process holds the pipe any more.
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)], stdout=subprocess.PIPE, timeout=25, env=env
    )
    assert done.returncode == -9
    assert not (tmp_path / "late").exists()


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "a worker died while it read b.tar, 7 (after 1"),
        ("re.match('(a|aa)+$', 'a' * 200 + 'b')", "s of CPU time in b.tar, 7 (after 1 records of"),
    ],
)
def test_a_lost_worker_is_named_and_the_others_are_ended(end, message):
    """`sleep` stands for a worker without work, which Beam would wait for."""
    read = f"with watchdog.noted('b.tar', 0.5) as note: note.count(); watchdog.at('7'); {end}"
    source = f"import os, re, signal\nfrom data_pipelines import watchdog\n{read}"
    idle = None
    with pytest.raises(watchdog.WorkerDied) as raised:  # noqa: SIM117
        with watchdog.watched():
            idle = subprocess.Popen(["sleep", "60"])
            subprocess.run([sys.executable, "-c", source], check=True)
    assert message in str(raised.value)
    assert idle.wait(timeout=20) == -9
    assert "FLAMINGO_JAX_NOTES" not in os.environ


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), watchdog.watched():
        raise ZeroDivisionError


def test_beam_ends_when_a_worker_is_killed(tmp_path):
    """In a program of its own: Beam's threads raise when their worker is gone."""
    source = f"""
        from etils import epath
        from data_pipelines import collect, on_beam, watchdog
        from tests.data_pipelines import readers
        try:
            collect.collect(
                ["a", "b"], readers.dies, "document", epath.Path({str(tmp_path)!r}),
                on_beam.Execution(num_workers=2),
            )
        except watchdog.WorkerDied as error:
            print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(source)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    assert "a worker died while it read b, the second (after 1 records of it)" in done.stdout
    assert done.returncode == 0
    assert not (tmp_path / "dataset_info.json").exists()


def test_notes_name_any_kind_of_unit(tmp_path, monkeypatch):
    monkeypatch.setenv("FLAMINGO_JAX_NOTES", str(tmp_path))
    for unit, name in [
        ("x.tar", "x.tar"),
        (("a.mp4", "b.mp4"), "one of 2 files, a.mp4 to b.mp4"),
        ("\ud800" * 9000, "???"),
    ]:
        with watchdog.noted(unit, 1.0):
            ((pid, note),) = watchdog._notes(str(tmp_path))
            assert pid == os.getpid()
            assert watchdog._text(note).startswith(name)
        assert not list(tmp_path.iterdir())
    watchdog.at("no unit is read: nothing happens")
