"""A small program of several processes, which tests disturb.

python -m tests.distributed.guarded saves | evaluates | noticed | stuck | stopped | done
"""

import os
import signal
import sys
import time

import jax
from jax._src import distributed
from jax.experimental import multihost_utils

from flamingo_jax.core import guard as guard_lib
from flamingo_jax.core.phases import Phase
from flamingo_jax.core.processes import Cluster


def main(what: str) -> None:
    """Updates until it is disturbed. Process 1 sticks after 20 updates if `what` is "stuck"."""
    if what == "stopped":
        guard_lib.LOST_SECONDS = 10.0
    with Cluster(saves=what != "evaluates") as cluster:
        guard = cluster.guard
        guard.watch(4.0 if what == "stuck" else 0.0)
        step = 0
        while True:
            guard.at(Phase.READING, step)
            if what == "stuck" and cluster.index == 1 and step == 20:
                time.sleep(600)
            guard.at(Phase.UPDATING, step)
            multihost_utils.process_allgather(jax.numpy.ones(()))
            step += 1
            if what == "noticed" and cluster.index == 1 and step == 10:
                # as jax's preemption service does when it has a notice of the platform
                now = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime())
                distributed.global_state.client.key_value_set("RECEIVED_PREEMPTION_NOTICE", now)
            if step == 10:
                sys.stdout.write("goes on\n")
                sys.stdout.flush()
            if what == "done" and step == 10:
                break
            if what != "evaluates" and guard.should_end():
                sys.stdout.write(f"ended at step {step}\n")
                raise guard.ended_as_asked(step)
    if cluster.index == 0:  # the loop has ended
        os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1])
