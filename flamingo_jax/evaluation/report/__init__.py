"""What a run of the evaluation writes for a reader.

Tables, curves, pages, and the numbers that others published.
"""
