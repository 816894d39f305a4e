"""train --watch: it survives preemptions, refusals, lost workers and failures.

The default suite has this long story; test_watch_situations.py has the single situations, which are
slow tests.
"""

import json
import os
import signal

import pytest

from tests.launch.pod import PATIENCE, wait_for
from tests.launch.watch import AWAY, PROGRAM, QUOTA_USED, TYPE


def test_a_watch_that_lives_through_much(watch):
    """Nine events in one job, of which none is the user's cause."""
    watch.refuse(request=[[2, AWAY]], create=[[1, "There is no more capacity in the zone"]])
    script = watch.start(*TYPE)
    watch.started(1)
    # The second request fails, the third is preempted at once, and the node of the fourth is lost.
    (watch.pod.state / "future").write_text("WAITING_FOR_RESOURCES FAILED")
    (watch.pod.state / "reason").write_text("no resources")
    watch.refuse(create=[[1, QUOTA_USED], [1, "HttpError 503: UNAVAILABLE"]])
    watch.states("SUSPENDING", "SUSPENDED")
    watch.hears("pod is FAILED (no resources); asking for it anew")
    (watch.pod.state / "future").write_text("PROVISIONING SUSPENDING SUSPENDED")
    (watch.pod.state / "node").write_text("PREEMPTED READY")
    watch.started(2)
    # A worker reboots, then the other does not answer for a while.
    pid = watch.pod.homes()[1] / "flamingo_pod" / "pid"
    os.killpg(int(pid.read_text().split()[0]), signal.SIGKILL)
    pid.write_text("1 another-boot")
    watch.started(3)
    (watch.pod.state / "unreachable").write_text("0")
    watch.hears("some workers of pod do not answer, its node is READY: ssh: connect to host")
    (watch.pod.state / "unreachable").unlink()
    watch.hears("all workers of pod answer again")
    assert watch.finish(script) == "flamingo_jax.train has ended on all workers"
    said = watch.said()
    for words in (
        "gcloud cannot describe pod: (gcloud.compute.tpus.queued-resources.describe) There was a",
        "gcloud can describe pod again, after 2 refusals",
        "There is no more capacity in the zone; again in ",
        "Limit: 32 in region us.; again in ",
        "503: UNAVAILABLE; again in ",
        "pod is SUSPENDED; asking for it anew",
        "pod is ACTIVE, but its node is PREEMPTED; asking for it anew",
        "the job is broken: worker 1: rebooted",
    ):
        assert said.count(words) == 1 or words.startswith("pod is SUSPENDED"), (words, said)
    assert "--spot" in json.loads((watch.pod.state / "resource.json").read_text())["flags"]
    deleted = [call for call in watch.pod.calls() if call[3] == "delete"]
    assert len(deleted) == 4 and all(call[4] == "pod" for call in deleted)


@pytest.mark.parametrize("status", [3, pytest.param(137, marks=pytest.mark.slow)])
def test_watch_gives_up_a_program_that_always_fails(watch, status):
    watch.plan(**{"1": [[7, status, "ValueError: no, ever"]] * 9, "0": [[7, 76, "elsewhere"]] * 9})
    last = watch.finish(watch.start(*TYPE), status=1)
    assert last.startswith(
        "error: it failed 4 times in a row, without a newer step. "
        f"worker 1: ended {status}, first, with: ValueError: no, ever. Its log: launch/tpu_pod.sh"
    )
    assert last.endswith("--worker=1")
    assert f"the job is broken: worker 0: ended 76;worker 1: ended {status}" in watch.said()
    watch.started(4)


def test_the_watch_ends_and_the_job_does_not(watch):
    script = watch.start(*TYPE)
    watch.started(1)
    watch.hears("its log:")
    script.send_signal(signal.SIGINT)
    last = watch.finish(script, status=130)
    assert last.startswith("the watch ends, flamingo_jax.train goes on on pod.")
    home = watch.pod.homes()[0]
    os.killpg(int((home / "flamingo_pod" / "pid").read_text().split()[0]), 0)
    # A second watch of the same slice asks the job to save, and a third makes the second end.
    second = watch.start(*TYPE)
    watch.started(2)
    wait_for(lambda: watch.said().count("started flamingo_jax.train") == 2)
    (watch.root / "flamingo_jax" / "train.py").write_text(PROGRAM + "# edited\n")
    third = watch.start(*TYPE)
    assert second.wait(PATIENCE) == 1
    assert "error: pod was given to another job, " in watch.said()
    watch.started(3)
    assert watch.finish(third).endswith("ended on all workers")
