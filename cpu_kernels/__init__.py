"""C++ operators for what torch computes slowly on a CPU; helper/compile.py uses them for --compile."""
