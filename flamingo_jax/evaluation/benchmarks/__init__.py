"""The benchmarks of the paper, one file each: official annotation files to items."""
