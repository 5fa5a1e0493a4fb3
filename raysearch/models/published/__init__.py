"""Conversion of published checkpoints with code of their own to stock classes."""
