"""One trial: prune, recover rung by rung, score every rung."""
