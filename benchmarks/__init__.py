"""python -m benchmarks: what is measured, a file a subject."""
import helper  # noqa: F401, before torch: it sets how threads wait
