"""Benchmarks of fastpose in its checkout: see README.md here. The measuring itself is in fastpose.benchmarking."""
