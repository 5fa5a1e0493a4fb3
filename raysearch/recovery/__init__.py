"""Recovery training of a pruned model: losses, teacher, and the DeepSpeed engine."""
