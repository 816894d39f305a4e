"""What is kept on disk.

The steps of a run (`store`), model directories (`export`), towers for a model (`partial`).
"""
