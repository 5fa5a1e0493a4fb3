"""User configuration: search space, recipe, settings, benchmarks, budgets, quantization."""
