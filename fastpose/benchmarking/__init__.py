"""Benchmarks that run on the machine at hand: ``fastpose bench``, or ``python -m fastpose.benchmarking`` without extras.

Three suites, each of workloads (a job on one shape) and their providers (fastpose, baselines, floors such as a copy). Everything
is checked before it is timed, and timed in turns. benchmarks/README.md explains what comes out.
"""
