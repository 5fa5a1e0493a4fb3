"""Conversion of published checkpoints that need code of their own to stock classes of transformers."""
