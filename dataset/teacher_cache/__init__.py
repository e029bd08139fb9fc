"""--teacher_cache: the teacher's outputs are stored once and read by every run; opening.py opens a cache for a run."""
