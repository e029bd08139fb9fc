"""Operators in C++ for what torch does slowly on a CPU, used by helper/compile.py alone."""
