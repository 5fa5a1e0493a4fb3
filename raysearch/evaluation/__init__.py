"""Benchmarks, metrics, evaluation of a model, and retention."""
