"""A pruned model as a stock Hugging Face folder, with its card, checked in a clean process."""
