"""A watch of launch/tpu_pod.sh, its cloud, and what gcloud says when it refuses.

The cloud is that of gcloud.py, here with slices of two workers. The program does what a plan says
at each of its starts.
"""

import contextlib
import json
import re
import shutil
import subprocess

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
        scripts: ends the scripts when it is closed.
    """

    def __init__(self, place):
        self.pod, self.work = Pod(place / "cloud", workers=2), place / "work"
        self.root, self.said_in = place / "clone", place / "said"
        self._place, self.scripts = place, contextlib.ExitStack()
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
        self.scripts.callback(script.wait)
        self.scripts.callback(script.kill)
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
