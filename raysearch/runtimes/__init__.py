"""Runtimes other than transformers: environments of their own, checkpoints in their formats, and proofs in them."""
