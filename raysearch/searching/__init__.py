"""Which recipe to try next, and which trial to stop."""
