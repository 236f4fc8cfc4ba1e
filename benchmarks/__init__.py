"""Measurements behind the README's tables: one script a claim, results as JSON lines in `results/`."""
