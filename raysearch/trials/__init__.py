"""A trial: prune the dense model, recover and evaluate it rung by rung, write the checkpoint."""
