"""Saving, resuming, many processes, options, the loop: no mathematics of distillation.

Importing it sets how long a thread of OpenMP, which torch computes with on a CPU, spins while it waits for the others,
before it sleeps. By default it spins for milliseconds. Beside another busy process the thread that is waited for may
have been put off its core, and the one that spins keeps a core from it; docs/performance.md has figures. OpenMP reads
this once, when torch is imported, so the scripts import this room before anything else. What the user has set stays.
"""
import os

if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '2000')     # rounds of GNU's runtime, some 50 microseconds
