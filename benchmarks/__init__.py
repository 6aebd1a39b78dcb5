"""Benchmarks of fastpose's kernels: see benchmarks/README.md."""
