"""Where a chat template puts the answers of a conversation.

A template may render a turn otherwise than it stands in the data, and an earlier turn otherwise than the last one:
without thoughts, with an empty thought, stripped. So a turn is found by what changes when its text is replaced by a
marker, and what a template writes around it by how the turn looks at the end of a conversation.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from raysearch.data.bad_rows import BadRow

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]
"""Messages, and whether the cue for an answer follows them -> text."""
_MARKERS = "\ue000\ue001\uf8fe"


def answer_spans(messages: Messages, text: str, render: Render) -> list[tuple[int, int]]:
    """Start and end of each answer in `text`, from the end of the cue to the end of the turn, without white space.

    Args:
        messages: with an answer behind a message of another role.
        text: all of them, rendered.

    Raises:
        BadRow: an answer is not in the text, or not as in the data.
    """
    marker = next((letter for letter in _MARKERS if letter not in text), None)
    if marker is None:
        raise BadRow("holds characters for private use that are needed to find answers")
    template = _Template(messages, text, render, marker)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            spans.append(template.span(index))
            _check(spans, text, message)
    return spans


def _check(spans: Sequence[tuple[int, int]], text: str, message: Mapping[str, Any]) -> None:
    start, end = spans[-1]
    said = "".join(part.get("text", "") for part in message["content"]).rpartition("</think>")[2]
    is_whole = "".join(said.split()) in "".join(text[start:end].split())
    if not is_whole or start >= end or (len(spans) > 1 and start < spans[-2][1]):
        raise BadRow(f"the chat template does not show answer {len(spans)} as it is")


class _Template:
    def __init__(self, messages: Messages, text: str, render: Render, marker: str) -> None:
        self._messages, self._text, self._render, self._marker = messages, text, render, marker

    def span(self, index: int) -> tuple[int, int]:
        """Of the answer at `index`."""
        around, behind = self._around(index, len(self._messages))
        begin = shared_start(around, self._text)
        end = len(self._text) - len(behind)
        if index + 1 < len(self._messages):
            as_last = self._around(index, index + 1)[1]
            end += shared_start(as_last, behind)
        else:
            end = len(self._text)
        if index:
            cue = self._around(index - 1, index, cue=True)[1]
            follows = self._around(index - 1, len(self._messages))[1]
            after_cue = len(self._text) - len(follows) + shared_start(cue, follows)
            begin = after_cue if follows.startswith(cue) else min(begin, after_cue)
        return begin, len(self._text[:end].rstrip())

    def _around(self, index: int, num_messages: int, cue: bool = False) -> tuple[str, str]:
        """The first messages as rendered with a marker for the text of one of them, and what follows the marker."""
        message = self._messages[index]
        parts = list(message["content"])
        if parts and parts[-1]["type"] == "text":
            parts.pop()
        marked = {**message, "content": [*parts, {"type": "text", "text": self._marker}]}
        rendered = self._render([*self._messages[:index], marked, *self._messages[index + 1 : num_messages]], cue)
        behind = rendered.rpartition(self._marker)[2]
        if behind == rendered or (num_messages == len(self._messages) and not self._text.endswith(behind)):
            raise BadRow(f"the chat template leaves out the text of turn {index + 1}")
        return rendered, behind


def shared_start(one: Sequence[Any], other: Sequence[Any]) -> int:
    """Length of the common prefix of two sequences."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))
