"""Replication of arXiv 2604.24380 on any model: its grid, its tables with intervals, and checks of its claims."""
