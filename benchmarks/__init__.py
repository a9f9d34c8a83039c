"""Benchmarks of educe; `python -m benchmarks.speed` runs them."""
