"""Measurements behind the tables of docs/: one script a claim, results as JSON lines in `results/`."""
