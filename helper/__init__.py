"""Saving, resuming, many processes, options, the loop: no mathematics of distillation.

Importing it sets how the threads of OpenMP wait for each other: asleep. By default they spin, and beside another busy
process each waits for a thread that the other has put off a core, and keeps that core from it (docs/performance.md).
OpenMP reads this once, when torch is imported, so the scripts import this room before anything else.
"""
import os

os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
