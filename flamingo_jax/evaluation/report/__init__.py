"""What a run of the evaluation writes for a reader: tables, curves, pages, and the numbers that others published."""
