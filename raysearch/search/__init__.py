"""Which recipe to try next, and which trial to stop: pure decisions, and Ray Tune's side of them."""
