"""train --watch: it survives preemptions, refusals, lost workers and failures.

The cloud is that of gcloud.py, here with slices of two workers. The program does what a plan says
at each of its starts. The default suite has one long story; the single situations are slow tests.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from tests.conftest import ROOT
from tests.launch.pod import PATIENCE, Pod, starts, wait_for

# plan: {"all", or a worker: [[step, status, last line], ...]}, one for each start. A start that is
# not in the plan runs until the file end is there. SIGTERM ends it as a run that has saved.
PROGRAM = """
import json, os, pathlib, signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
workdir, me = pathlib.Path(sys.argv[-1].partition("=")[2]), os.environ["JAX_PROCESS_ID"]
plan = json.loads((workdir / "plan").read_text())
with (workdir / f"starts{me}").open("a+") as starts:
    starts.write(os.environ.get("GREETING", "none") + "\\n")
    starts.seek(0)
    start = len(starts.readlines()) - 1
mine = plan.get(me, plan.get("all", []))
if start < len(mine):
    step, status, line = mine[start]
    print(f"small step {step} of 100: loss 1\\r{line}" if step else line, flush=True)
    sys.exit(status)
while not (workdir / "end").exists():
    time.sleep(0.02)
"""
TYPE = ["--accelerator_type=v4-16", "--spot"]
QUOTA_0 = (
    "RESOURCE_EXHAUSTED: Quota limit 'TPUsPerProject' has been exceeded. Limit: 0 in region us."
)
QUOTA_USED = QUOTA_0.replace("Limit: 0", "Limit: 32")
AWAY = (
    "There was a problem refreshing your current auth tokens: Temporary failure in name "
    "resolution\nPlease run:\n\n  $ gcloud auth login"
)


class Watch:
    """A script that watches a job on a slice of two workers; ended with the context.

    Attributes:
        pod: the cloud.
        work: the workdir.
    """

    def __init__(self, place):
        self.pod, self.work = Pod(place / "cloud", workers=2), place / "work"
        self.root, self.said_in = place / "clone", place / "said"
        self._place, self._scripts = place, contextlib.ExitStack()
        (self.root / "launch").mkdir(parents=True)
        for name in ("tpu_pod.sh", "tpu_worker.sh", "environment.sh", "log_end.awk"):
            shutil.copy(ROOT / "launch" / name, self.root / "launch")
        files = {"launch/requirements.lock": "", "setup.py": "", ".gitignore": ".venv/\n"}
        files |= {"flamingo_jax/__init__.py": "", "flamingo_jax/train.py": PROGRAM}
        for name, text in {**files, "configs/a.py": ""}.items():
            (self.root / name).parent.mkdir(exist_ok=True)
            (self.root / name).write_text(text)
        subprocess.run(["git", "init", "--quiet"], cwd=self.root, check=True)
        self.work.mkdir()
        self.plan()

    def plan(self, **plan):
        (self.work / "plan").write_text(json.dumps(plan))

    def start(self, *options):
        """Starts a script; the output of all goes to one file."""
        options = [*options, f"--shared={self._place}", "--", "--config=configs/a.py"]
        command = self.pod.command("train", "--watch", *options, root=self.root)
        with self.said_in.open("a") as out:
            script = subprocess.Popen(
                [*command, f"--workdir={self.work}"],
                env=self.pod.variables,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        self._scripts.callback(script.wait)
        self._scripts.callback(script.kill)
        return script

    def said(self):
        return self.said_in.read_text()

    def hears(self, words):
        wait_for(lambda: words in self.said())

    def started(self, times):
        wait_for(lambda: starts(self._place)[:2] == [["none"] * times] * 2)

    def states(self, *states):
        """Changes the state of the request."""
        resource = json.loads((self.pod.state / "resource.json").read_text())
        (self.pod.state / "next").write_text(json.dumps({**resource, "states": states}))
        (self.pod.state / "next").rename(self.pod.state / "resource.json")

    def refuse(self, **commands):
        """Refuses the next calls: create=[[3, "the words"]]."""
        groups = {"create": "queued-resources", "delete": "queued-resources"}
        told = {f"{groups.get(verb, 'tpu-vm')}.{verb}": list(of) for verb, of in commands.items()}
        if "request" in commands:
            told["queued-resources.describe"] = told.pop("tpu-vm.request")
        (self.pod.state / "refusals.new").write_text(json.dumps(told))
        (self.pod.state / "refusals.new").rename(self.pod.state / "refusals.json")

    def finish(self, script, status=0):
        """Ends the program if the watch must succeed; returns the last line of the watch."""
        if status == 0:
            (self.work / "end").write_text("")
        assert script.wait(PATIENCE) == status, self.said()
        assert not re.search(r"\.sh: line \d", self.said()), "an error of bash itself"
        return self.said().splitlines()[-1]


@pytest.fixture
def watch(tmp_path):
    watch = Watch(tmp_path)
    with watch._scripts:
        yield watch
    watch.refuse()
    subprocess.run(
        watch.pod.command("delete", "--quiet"),
        env=watch.pod.variables,
        capture_output=True,
        check=False,
    )


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


def test_kinds_of_refusals():
    """What passes is tried for ever; what does not is an error of the user."""
    kinds = {
        "busy": [
            QUOTA_USED,
            AWAY,
            "HttpError 429: Too Many Requests",
            "code 500: Internal error occurred [EID: 0x1]",
            "There is no more capacity in the zone us-a; you can try in another zone",
            "Quota 'TPUV4sPreemptible' exhausted. Limit 20800 in region us-central2",
            "403 rateLimitExceeded: Quota exceeded for quota metric 'Requests'",
            "Connection reset by peer",
            "DEADLINE_EXCEEDED: Deadline expired before operation could complete.",
            "no answer of gcloud within 300 s",
        ],
        "login": [
            "Reauthentication failed. cannot prompt during non-interactive execution.",
            "('invalid_grant: Bad Request', {'error': 'invalid_grant'})",
            "You do not currently have an active account selected.",
        ],
        "user": [
            QUOTA_0,
            'Quota exceeded: {"quota_limit_value": "0"}',
            "PERMISSION_DENIED: Permission 'tpu.nodes.create' denied on 'projects/p'",
            "Permission denied on 'locations/us-nowhere1-a' (or it may not exist).",
            "This API method requires billing to be enabled.",
            "Cloud TPU API has not been used in project p before or it is disabled. If you "
            "enabled this API recently, wait a few minutes and retry.",
            "Cloud TPU received a bad request. The accelerator v4-9 was not found in zone us-a",
            "INVALID_ARGUMENT: 'v99' is not a valid acceleratorType",
            "The required property [zone] is not currently set.",
            "NOT_FOUND: Reservation was not found",
        ],
        "unknown": ["", "FAILED_PRECONDITION: the moon is full"],
    }
    script = (ROOT / "launch" / "tpu_pod.sh").read_text()
    (function,) = re.findall(r"^kind\(\) \{.*?^\}$", script, re.DOTALL | re.MULTILINE)
    texts = [(kind, text) for kind, all_of in kinds.items() for text in all_of]
    shell = f'set -euo pipefail\n{function}\nfor text in "$@"; do kind "$text"; done'
    done = subprocess.run(
        ["bash", "-c", shell, "kind", *[text for _, text in texts]],
        capture_output=True,
        text=True,
        check=True,
    )
    assert list(zip(done.stdout.split(), [text for _, text in texts], strict=True)) == texts


def test_waits_double_up_to_a_cap():
    script = (ROOT / "launch" / "tpu_pod.sh").read_text()
    (function,) = re.findall(r"^back_off\(\) \{.*?^\}$", script, re.DOTALL | re.MULTILINE)
    shell = f'{function}\nsay() {{ :; }}; nap() {{ echo "$1"; }}; poll=30 MAX_WAIT=20 said=""\n'
    shell += "for n in 1 2 3 4 5 6 7 900; do back_off $n why; done"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True)
    waits = [float(line) for line in done.stdout.split()]
    for wait, middle in zip(waits, [30, 60, 120, 240, 480, 600, 600, 600], strict=True):
        assert 0.74 * middle <= wait <= 1.26 * middle


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


# --- slow: one situation each ---------------------------------------------------------------------


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_notice_and_then_the_preemption(watch):
    watch.plan(all=[[5, 75, "saved"]])
    script = watch.start(*TYPE, "--poll=1")
    watch.hears("the job is broken: worker 0: ended 75;worker 1: ended 75")
    watch.states("SUSPENDING", "SUSPENDED")
    watch.started(2)
    watch.finish(script)
    assert watch.said().count("started flamingo_jax.train") == 2
    assert "pod is SUSPENDED; asking for it anew" in watch.said()


@pytest.mark.slow
def test_stopped_by_hand(watch):
    watch.plan(all=[[5, 143, "at once"]])
    last = watch.finish(watch.start(*TYPE), status=1)
    assert last.startswith("error: worker 0: ended 143: the program was stopped by hand")


@pytest.mark.slow
@pytest.mark.parametrize("words", [QUOTA_0, "PERMISSION_DENIED: no", "billing is not enabled"])
def test_what_the_user_must_mend_ends_the_watch(watch, words):
    script = watch.start(*TYPE)
    watch.started(1)
    watch.refuse(create=[[-1, words]])
    watch.states("SUSPENDED")
    last = watch.finish(script, status=1)
    assert last.startswith("error: gcloud cannot request pod: ") and last.endswith(words)
    assert watch.said().count("; again in") == 2, "asked three times: it may have been a moment"


@pytest.mark.slow
@pytest.mark.parametrize("words", [QUOTA_0, "invalid_grant", "INVALID_ARGUMENT: v4-16"])
def test_what_the_user_must_mend_at_the_start_is_one_line(watch, words):
    watch.refuse(create=[[-1, words]])
    last = watch.finish(watch.start(*TYPE), status=1)
    assert last.startswith("error: gcloud cannot request pod: ") and "again in" not in watch.said()


@pytest.mark.slow
def test_a_request_that_fails_for_a_reason_of_the_user(watch):
    (watch.pod.state / "future").write_text("WAITING_FOR_RESOURCES FAILED")
    (watch.pod.state / "reason").write_text(QUOTA_0)
    last = watch.finish(watch.start(*TYPE), status=1)
    assert last == f"error: pod is FAILED and will not come. The reason: {QUOTA_0}"


@pytest.mark.slow
@pytest.mark.parametrize("future", ["ACTIVE", "WAITING_FOR_RESOURCES"])
def test_what_the_user_deletes_is_not_requested_again(watch, future):
    (watch.pod.state / "future").write_text(future)
    script = watch.start(*TYPE)
    watch.hears("its log:" if future == "ACTIVE" else "WAITING_FOR_RESOURCES")
    watch.pod.run("delete", "--quiet")
    last = watch.finish(script, status=1)
    assert last.startswith("error: somebody deleted pod, so train ends.")
    assert [call[3] for call in watch.pod.calls()].count("create") == 1


@pytest.mark.slow
def test_a_moment_without_an_answer_is_no_deletion(watch):
    script = watch.start(*TYPE)
    watch.started(1)
    watch.refuse(request=[[2, "NOT_FOUND: Resource 'queuedResources/pod' was not found"]])
    wait_for(lambda: json.loads((watch.pod.state / "refusals.json").read_text()) != {})
    watch.hears("started flamingo_jax.train")
    watch.started(2)
    watch.finish(script)


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_word_that_nobody_knows_ends_nothing(watch):
    script = watch.start(*TYPE)
    watch.hears("its log:")
    watch.states("REBALANCING")
    watch.hears("pod is REBALANCING, which is no state that this script knows")
    watch.finish(script)
    assert watch.said().count("started flamingo_jax.train") == 1


@pytest.mark.slow
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


@pytest.mark.slow
def test_one_worker_does_not_end(watch):
    watch.plan(**{"0": [[9, 0, "done"]]})
    script = watch.start(*TYPE, "--poll=0.05")
    watch.hears("the job is broken: worker 0: ended 0")
    watch.started(2)
    watch.finish(script)


@pytest.mark.slow
def test_a_wrong_bucket_ends_the_watch_at_the_first_start(watch):
    last = watch.finish(watch.start(*TYPE, "--mount=nowhere:data"), status=1)
    assert last.startswith("error: not all workers of pod have started: worker 0: cannot mount")
    assert "again in" not in watch.said()


@pytest.mark.slow
def test_a_watch_starts_again_what_it_has_started(watch):
    """What is edited here in the meantime is not shipped."""
    script = watch.start(*TYPE)
    watch.hears("its log:")
    (watch.root / "flamingo_jax" / "train.py").write_text("edited")
    watch.states("SUSPENDED")
    watch.started(2)
    watch.finish(script)


@pytest.mark.slow
def test_interrupted_while_it_waits(watch):
    (watch.pod.state / "future").write_text("WAITING_FOR_RESOURCES")
    script = watch.start(*TYPE)
    watch.hears("WAITING_FOR_RESOURCES")
    script.send_signal(signal.SIGTERM)
    last = watch.finish(script, status=143)
    assert last.startswith("interrupted. The request of pod stays in the queue")
    assert (watch.pod.state / "resource.json").exists()


@pytest.mark.slow
def test_without_a_type_it_says_that_it_cannot_ask_again(watch):
    watch.pod.run("create", *TYPE)
    script = watch.start()
    watch.hears("note: without --accelerator_type this watch cannot request pod again")
    watch.hears("its log:")
    watch.states("SUSPENDED")
    assert watch.finish(script, status=1).startswith("error: no accelerator type")


@pytest.mark.slow
def test_a_name_that_is_taken(watch):
    """Ten times, because the name of a slice that was deleted is free after a moment only."""
    watch.refuse(create=[[-1, "ALREADY_EXISTS: Node pod already exists"]])
    last = watch.finish(watch.start(*TYPE, "--poll=0.02"), status=1)
    assert last.startswith("error: pod is taken, but not by a queued resource")
