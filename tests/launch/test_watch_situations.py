"""train --watch, one situation in each test: preemptions, refusals, states, statuses."""

import json
import re
import signal

import pytest

from tests.launch.pod import wait_for
from tests.launch.watch import QUOTA_0, TYPE

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("plan", "times", "words"),
    [
        ([[None, 75, "saved"]] * 2, 3, "the job is broken: worker 0: ended 75;worker 1: ended 75"),
        ([[None, 76, "stuck"]] * 6, 7, "restart 6 without a newer step; again in"),
        ([[step, 1, "OSError: disk"] for step in range(1, 7)], 7, "worker 0: ended 1"),
    ],
    ids=["saved", "stuck", "progress"],
)
def test_statuses_after_which_the_same_command_goes_on(watch, plan, times, words):
    watch.plan(all=plan)
    script = watch.start(*TYPE)
    watch.started(times)
    watch.finish(script)
    assert words in watch.said()


def test_a_notice_and_then_the_preemption(watch):
    watch.plan(all=[[5, 75, "saved"]])
    script = watch.start(*TYPE, "--poll=1")
    watch.hears("the job is broken: worker 0: ended 75;worker 1: ended 75")
    watch.states("SUSPENDING", "SUSPENDED")
    watch.started(2)
    watch.finish(script)
    assert watch.said().count("started flamingo_jax.train") == 2
    assert "pod is SUSPENDED; asking for it anew" in watch.said()


def test_stopped_by_hand(watch):
    watch.plan(all=[[5, 143, "at once"]])
    last = watch.finish(watch.start(*TYPE), status=1)
    assert last.startswith("error: worker 0: ended 143: the program was stopped by hand")


@pytest.mark.parametrize("words", [QUOTA_0, "PERMISSION_DENIED: no", "billing is not enabled"])
def test_what_the_user_must_mend_ends_the_watch(watch, words):
    script = watch.start(*TYPE)
    watch.started(1)
    watch.refuse(create=[[-1, words]])
    watch.states("SUSPENDED")
    last = watch.finish(script, status=1)
    assert last.startswith("error: gcloud cannot request pod: ") and last.endswith(words)
    assert watch.said().count("; again in") == 2, "asked three times: it may have been a moment"


@pytest.mark.parametrize("words", [QUOTA_0, "invalid_grant", "INVALID_ARGUMENT: v4-16"])
def test_what_the_user_must_mend_at_the_start_is_one_line(watch, words):
    watch.refuse(create=[[-1, words]])
    last = watch.finish(watch.start(*TYPE), status=1)
    assert last.startswith("error: gcloud cannot request pod: ") and "again in" not in watch.said()


def test_a_request_that_fails_for_a_reason_of_the_user(watch):
    (watch.pod.state / "future").write_text("WAITING_FOR_RESOURCES FAILED")
    (watch.pod.state / "reason").write_text(QUOTA_0)
    last = watch.finish(watch.start(*TYPE), status=1)
    assert last == f"error: pod is FAILED and will not come. The reason: {QUOTA_0}"


@pytest.mark.parametrize("future", ["ACTIVE", "WAITING_FOR_RESOURCES"])
def test_what_the_user_deletes_is_not_requested_again(watch, future):
    (watch.pod.state / "future").write_text(future)
    script = watch.start(*TYPE)
    watch.hears("its log:" if future == "ACTIVE" else "WAITING_FOR_RESOURCES")
    watch.pod.run("delete", "--quiet")
    last = watch.finish(script, status=1)
    assert last.startswith("error: somebody deleted pod, so train ends.")
    assert [call[3] for call in watch.pod.calls()].count("create") == 1


def test_a_moment_without_an_answer_is_no_deletion(watch):
    script = watch.start(*TYPE)
    watch.started(1)
    watch.refuse(request=[[2, "NOT_FOUND: Resource 'queuedResources/pod' was not found"]])
    wait_for(lambda: json.loads((watch.pod.state / "refusals.json").read_text()) != {})
    watch.hears("started flamingo_jax.train")
    watch.started(2)
    watch.finish(script)


@pytest.mark.parametrize(
    ("node", "again"),
    [
        ("TERMINATED TERMINATED READY", True),
        ("MISSING MISSING MISSING MISSING READY", True),
        ("REPAIRING REPAIRING READY", False),
    ],
)
def test_states_of_the_node(watch, node, again):
    script = watch.start(*TYPE)
    watch.hears("its log:")
    (watch.pod.state / "unreachable").write_text("0 1")
    (watch.pod.state / "node").write_text(node)
    if again:
        wait_for(lambda: [call[3] for call in watch.pod.calls()].count("delete") == 1)
    else:
        watch.hears("its node is REPAIRING")
    (watch.pod.state / "unreachable").unlink()
    watch.started(2 if again else 1)
    if not again:
        watch.hears("all workers of pod answer again")
    watch.finish(script)
    assert watch.said().count("started flamingo_jax.train") == (2 if again else 1)


def test_a_word_that_nobody_knows_ends_nothing(watch):
    script = watch.start(*TYPE)
    watch.hears("its log:")
    watch.states("REBALANCING")
    watch.hears("pod is REBALANCING, which is no state that this script knows")
    watch.finish(script)
    assert watch.said().count("started flamingo_jax.train") == 1


@pytest.mark.parametrize("call", ["request", "ssh", "create"])
def test_a_call_that_does_not_return(watch, call):
    script = watch.start(*TYPE, "--patience=15")
    watch.hears("its log:")
    watch.refuse(**{call: [[1, "hang"]]})
    if call == "create":
        watch.states("SUSPENDED")
        watch.started(2)
    watch.hears("no answer of gcloud within 15 s")
    watch.finish(script)


def test_one_worker_does_not_end(watch):
    watch.plan(**{"0": [[9, 0, "done"]]})
    script = watch.start(*TYPE, "--poll=0.05")
    watch.hears("the job is broken: worker 0: ended 0")
    watch.started(2)
    watch.finish(script)


def test_a_wrong_bucket_ends_the_watch_at_the_first_start(watch):
    last = watch.finish(watch.start(*TYPE, "--mount=nowhere:data"), status=1)
    assert re.match(
        r"error: not all workers of pod have started: worker [01]: cannot mount nowhere on", last
    )
    assert "again in" not in watch.said()


def test_a_watch_starts_again_what_it_has_started(watch):
    """What is edited here in the meantime is not shipped."""
    script = watch.start(*TYPE)
    watch.hears("its log:")
    (watch.root / "flamingo_jax" / "train.py").write_text("edited")
    watch.states("SUSPENDED")
    watch.started(2)
    watch.finish(script)


def test_interrupted_while_it_waits(watch):
    (watch.pod.state / "future").write_text("WAITING_FOR_RESOURCES")
    script = watch.start(*TYPE)
    watch.hears("WAITING_FOR_RESOURCES")
    script.send_signal(signal.SIGTERM)
    last = watch.finish(script, status=143)
    assert last.startswith("interrupted. The request of pod stays in the queue")
    assert (watch.pod.state / "resource.json").exists()


def test_without_a_type_it_says_that_it_cannot_ask_again(watch):
    watch.pod.run("create", *TYPE)
    script = watch.start()
    watch.hears("note: without --accelerator_type this watch cannot request pod again")
    watch.hears("its log:")
    watch.states("SUSPENDED")
    assert watch.finish(script, status=1).startswith("error: no accelerator type")


def test_a_name_that_is_taken(watch):
    """Ten times, because the name of a slice that was deleted is free after a moment only."""
    watch.refuse(create=[[-1, "ALREADY_EXISTS: Node pod already exists"]])
    last = watch.finish(watch.start(*TYPE, "--poll=0.02"), status=1)
    assert last.startswith("error: pod is taken, but not by a queued resource")
