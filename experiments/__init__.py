"""A table of runs: read from a file, run to its end on one machine or by Slurm, and reported."""
