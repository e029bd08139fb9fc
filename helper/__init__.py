"""Runs, options, the training loop and several processes: everything but the mathematics of distillation.

Importing it sets how long an OpenMP thread, with which torch computes on a CPU, spins before it sleeps while it waits
for others. By default it spins for milliseconds, and keeps a core busy that another process may need. OpenMP reads the
setting once, when torch is imported, so the scripts import `helper` first. A setting of the user stays.
docs/performance.md has measurements.

It also keeps the warnings of torch's C++ code off the terminal: when a process of several ends, they say in dozens of
lines what the program says in one. --debug shows them.
"""
import os
import sys

if 'OMP_WAIT_POLICY' not in os.environ:
    os.environ.setdefault('GOMP_SPINCOUNT', '2000')     # rounds of GNU's runtime, about 50 microseconds
if '--debug' not in sys.argv:
    os.environ.setdefault('TORCH_CPP_LOG_LEVEL', 'ERROR')
