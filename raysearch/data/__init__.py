"""Recovery data: rows of the usual formats, and their tensors."""
