"""The stages of a job, each `run(job, ...) -> summary block`; none knows another."""
