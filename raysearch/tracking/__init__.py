"""Track a search in MLflow, without ever delaying it."""
