"""Benchmarks against peers (PERFORMANCE section 10): `python -m bench --list`, `python -m bench R1 T1`."""
