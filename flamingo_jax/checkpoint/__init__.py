"""Saves and loads: the steps of a run (`store`), whole models (`export`), towers (`partial`).

Their files are checked by a `manifest` of hashes before they are used.
"""
