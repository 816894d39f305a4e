"""The logs of a run besides metrics.jsonl and the screen."""
