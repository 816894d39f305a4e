"""Loggers as a user writes them, for test_chosen.py and test_run.py."""

MADE = []  # of `recorder`, the last one


class Recorder:
    """A user's logger: keeps what it gets."""

    def __init__(self, run):
        self.run, self.written, self.closed = run, [], False

    def write(self, step, numbers):
        self.written.append((step, numbers))

    def close(self):
        self.closed = True


class Offline(Recorder):
    """A service that never answers."""

    def write(self, step, numbers):
        raise ConnectionError("no route to the service")


class LosesAll(Recorder):
    """A service that fails when it is to store what it has."""

    def close(self):
        raise OSError("quota of the service is used up")


def recorder(run):
    MADE[:] = [Recorder(run)]
    return MADE[0]
