"""What a person writes: a search space, a recipe, settings, benchmarks and budgets."""
