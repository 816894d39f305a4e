"""From raw material to ArrayRecord datasets that training reads.

`python -m data_pipelines.run --pipeline=NAME --output=DIR`.
"""
