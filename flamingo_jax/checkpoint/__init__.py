"""Saves and loads: the steps of a run (`store`), whole models (`export`), towers (`partial`)."""
