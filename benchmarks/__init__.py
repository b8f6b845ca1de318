"""Benchmarks against peers in the same run: `python -m benchmarks.NAME`, records in `benchmarks/records`."""
