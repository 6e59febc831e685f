"""Measured figures of docs/performance.md: `pytest tests/benchmarks/bench_X.py`."""
