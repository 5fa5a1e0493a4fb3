"""How much this process has computed, so that long work is told from work that hangs."""

_num_steps = 0


def step() -> None:
    """A batch has been computed: of training, of an evaluation or of a measurement."""
    global _num_steps
    _num_steps += 1


def num_steps() -> int:
    """Batches computed so far."""
    return _num_steps
