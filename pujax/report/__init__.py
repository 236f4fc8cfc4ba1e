"""The report of a run: what its files show, brought into one HTML page that needs nothing else."""
