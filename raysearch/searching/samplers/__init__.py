"""Samplers: which recipe to try next."""
