"""Measures Backlot against baselines in the same run; see docs/benchmarks.md."""
