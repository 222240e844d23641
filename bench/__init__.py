"""Benchmarks of casckpt: one file per question, one runner (`python -m bench.run`)."""
