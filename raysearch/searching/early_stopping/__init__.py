"""Multi-objective ASHA: which trial to stop at a rung."""
