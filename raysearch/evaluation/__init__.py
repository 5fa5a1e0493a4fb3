"""What a model keeps: benchmarks, their metrics, its answers, and retention."""
