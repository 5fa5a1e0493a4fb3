"""Small spaces over the embedded LVLM, for trials without a search."""

from raysearch.config.space import SearchSpace


def pocket_space(recipe, num_samples, num_search, precision, **more):
    """Two benchmarks of `num_search` search questions and 60 held-out ones."""
    benchmarks = [
        {"name": name, "data": "pocket", "metric": "exact", "num_search": num_search, "num_heldout": 60}
        for name in ("digits", "easy-vqa")
    ]
    return SearchSpace.model_validate(
        {
            "name": "small",
            "model": "pocket",
            "num_samples": num_samples,
            "benchmarks": benchmarks,
            "recipe": recipe,
            "recovery": {"max_length": 256, "zero_stage": 1, "precision": precision},
            **more,
        }
    )
