"""Benchmarks and load tests: `python -m loadtest NAME`, see `make bench`."""
