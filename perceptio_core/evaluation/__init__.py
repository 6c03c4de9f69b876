"""Benchmarks, the reading of answers, running, statistics, and interchange with other harnesses."""
