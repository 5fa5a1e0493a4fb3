"""What a metric reads of a question."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gold:
    """A question's right answers."""

    answers: tuple[str, ...]
    options: tuple[str, ...] = ()
    image_id: str = "1"
    category: str = ""
