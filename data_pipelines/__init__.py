"""Programs that convert raw data to the ArrayRecord datasets that training reads.

`python -m data_pipelines.run --pipeline=NAME --output=DIR`.
"""
