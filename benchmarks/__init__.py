"""Speed and memory measurements, one file a subject: python -m benchmarks SUBJECT."""
import helper  # noqa: F401, before torch: it sets how threads wait
