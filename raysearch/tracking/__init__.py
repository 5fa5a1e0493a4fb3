"""A search followed in MLflow, without ever holding it up."""
