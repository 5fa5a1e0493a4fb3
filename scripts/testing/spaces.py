"""Search spaces for tests and benchmarks."""

SMALL_SPACE = {
    "name": "small",
    "model": "pocket",
    "num_samples": 60,
    "budgets": ["95%"],
    "recipe": {
        "mode": ["layerwise", "widthwise"],
        "ratio": {"low": 0.1, "high": 0.6},
        "criterion": ["deepest", "magnitude"],
        "trained": ["nothing", "projector", "projector+lora", "projector+decoder"],
        "lora_rank": 4,
        "hidden_kd": [0.0, 1.0],
        "data_fraction": [0.5, 1.0],
    },
    "search": {"trials": 6, "first_rung": 0.25, "shapes": 12, "seed": 3},
    "recovery": {"batch_size": 4, "max_length": 256, "zero_stage": 1},
    "slots": {"num": 1},
}
