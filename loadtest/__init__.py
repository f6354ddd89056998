"""Benchmarks and load: `python -m loadtest NAME`, see `make bench`."""
