"""Training splits of benchmarks to records: `--pipeline=benchmark`."""
