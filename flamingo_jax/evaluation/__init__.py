"""Few-shot evaluation: tasks, metrics, the runner, and the report."""
