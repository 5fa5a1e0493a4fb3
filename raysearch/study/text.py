"""Numbers as text for people."""


def seconds_text(seconds: float) -> str:
    """A duration as people read it, e.g. `2 h 05 min`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
