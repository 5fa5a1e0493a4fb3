"""A sample: one conversation about any number of images; and how rows of the usual formats become samples."""

import io
import itertools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from raysearch.errors import InputError

BAD_ROWS_ALLOWED = 0.01
"""Share of a data set's rows that may be unusable."""
NUM_BAD_ROWS_NAMED = 3
_IMAGE = "<image>"
_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}

Picture = Image.Image | Path | bytes
"""An image, decoded, or its file's path or bytes."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        id: unique within its data set.
        source: the collection that it belongs to.
        images: in the order of their placeholders.
        messages: for `apply_chat_template`: role, and content as a list of text and image parts.
    """

    id: str
    source: str
    images: tuple[Picture, ...]
    messages: list[dict[str, Any]]


class BadRow(InputError):
    """A row that can't be trained on, and why."""


class BadData(InputError):
    """Too many rows of a data set can't be used, so no trial can run on it."""


@dataclass
class BadRows:
    """The unusable rows of one data set, `found` by name with their reasons; too many of them are an error."""

    data: str
    num_rows: int
    limit: float = BAD_ROWS_ALLOWED
    found: dict[str, str] = field(default_factory=dict)
    _num_reported: int = field(default=0, init=False)

    @property
    def max_found(self) -> float:
        """How many rows may be unusable."""
        return self.limit * self.num_rows

    def add(self, row: str, reason: str) -> None:
        """Record a row, and `check`."""
        self.found.setdefault(row, reason)
        self.check()

    def check(self) -> None:
        """Raise an error if there are too many.

        Raises:
            BadData: more than `limit` of the rows are unusable.
        """
        if len(self.found) > self.max_found:
            raise BadData(
                f"{self.data}: more than {self.limit:.1%} of {self.num_rows} rows can't be used ({self.named()}); "
                "mend or remove them"
            )

    def named(self) -> str:
        """The first unusable rows with their reasons, on one line."""
        first = itertools.islice(self.found.items(), NUM_BAD_ROWS_NAMED)
        more = len(self.found) - NUM_BAD_ROWS_NAMED
        return "; ".join(f"{row}: {reason}" for row, reason in first) + (f"; {more} more" if more > 0 else "")

    def report(self) -> None:
        """Log a warning that names what was left out, if there is more than at the last one."""
        if len(self.found) > self._num_reported:
            self._num_reported = len(self.found)
            logger.warning("%s: left out %d of %d rows (%s)", self.data, len(self.found), self.num_rows, self.named())


def sample_from_row(
    row: Mapping[str, Any], index: int, image_folders: Sequence[Path] = (), check_files: bool = False
) -> Sample:
    """Read a row of LLaVA's format or of the chat format.

    LLaVA: `conversations` of {"from", "value"} with `<image>` in the text, and `image`, a path or a list of them.
    Chat: `messages` of {"role", "content"}, the content a text or a list of parts, and `images`.

    Args:
        row: the row; images may be paths, or decoded.
        index: of the row in its file; its id if it has none.
        image_folders: where paths are looked up, in this order.
        check_files: whether a missing image makes the row bad now rather than when it is opened.

    Raises:
        BadRow: no answer, a malformed turn, a missing image, or images and placeholders that don't match.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object with keys and values")
    turns = row.get("conversations") or row.get("messages")
    if not isinstance(turns, Sequence) or isinstance(turns, str) or not turns:
        raise BadRow("no conversations and no messages")
    messages = [_message(turn) for turn in turns]
    images = tuple(_image(given, image_folders, check_files) for given in _images_of(row))
    _place_images(messages, len(images))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    if not any(_text(message) for message in messages if message["role"] == "assistant"):
        raise BadRow("no answer")
    if messages[0]["role"] == "assistant":
        raise BadRow("begins with an answer, so there is nothing to answer")
    found = sum(part["type"] == "image" for message in messages for part in message["content"])
    if found != len(images):
        raise BadRow(f"{found} image placeholders for {len(images)} images")
    return Sample(str(row.get("id", index)), _source(row), images, messages)


def _message(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping):
        raise BadRow("a turn that is not an object")
    role = _ROLES.get(str(turn.get("from", turn.get("role"))))
    content = turn.get("value", turn.get("content"))
    if role is None:
        raise BadRow(f"a turn of {turn.get('from', turn.get('role'))!r}; known are {', '.join(_ROLES)}")
    if isinstance(content, str):
        return {"role": role, "content": _parts(content)}
    if not isinstance(content, Sequence):
        raise BadRow("a turn without content")
    return {"role": role, "content": [_part(part) for part in content]}


def _part(part: Any) -> dict[str, Any]:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "image":
        return {"type": "image"}
    if kind == "text":
        return {"type": "text", "text": str(part.get("text") or "")}
    raise BadRow(f"a part of type {kind!r}; known are text and image")


def _parts(text: str) -> list[dict[str, Any]]:
    """Text with `<image>` placeholders as parts, without the line breaks around placeholders."""
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(text.split(_IMAGE)):
        if index:
            parts.append({"type": "image"})
        stripped = piece.strip("\n") if _IMAGE in text else piece
        if stripped:
            parts.append({"type": "text", "text": stripped})
    return parts or [{"type": "text", "text": ""}]


def _place_images(messages: list[dict[str, Any]], num_images: int) -> None:
    """Put the image of a row with one and no placeholder before the first question, as LLaVA's loader does."""
    has_placeholder = any(part["type"] == "image" for message in messages for part in message["content"])
    first = next((message for message in messages if message["role"] == "user"), None)
    if num_images == 1 and not has_placeholder and first is not None:
        first["content"] = [{"type": "image"}, *first["content"]]


def _images_of(row: Mapping[str, Any]) -> list[Any]:
    given = row.get("images") if row.get("images") is not None else row.get("image")
    if given is None or given == "":
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _image(given: Any, folders: Sequence[Path], check: bool) -> Picture:
    if isinstance(given, Mapping):  # an undecoded image of the datasets library
        given = given.get("bytes") or given.get("path")
    if isinstance(given, Image.Image | bytes):
        return given
    if not isinstance(given, str | Path):
        raise BadRow(f"an image that is {type(given).__name__}, not a path or a picture")
    paths = [folder / given for folder in folders] or [Path(given)]
    found = next((path for path in paths if path.is_file()), None) if check or len(paths) > 1 else paths[0]
    if found is None and check:
        raise BadRow(f"image {given} not found under {' or '.join(map(str, folders)) or '.'}")
    return found or paths[0]


def _text(message: Mapping[str, Any]) -> str:
    return "".join(part.get("text", "") for part in message["content"]).strip()


def _source(row: Mapping[str, Any]) -> str:
    """The row's own, else the first folder of its image's path (as in LLaVA's mix), else `images` or `text`."""
    if row.get("source"):
        return str(row["source"])
    image = row.get("image")
    if isinstance(image, str) and image:
        return Path(image).parts[0] if len(Path(image).parts) > 1 else "images"
    return "text" if not _images_of(row) else "images"


def open_image(image: Picture) -> Image.Image:
    """The decoded image, in RGB.

    Raises:
        BadRow: the file is missing or is no image.
    """
    if isinstance(image, Image.Image):
        return image.convert("RGB")
    try:
        return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image).convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        named = f"{len(image)} bytes" if isinstance(image, bytes) else image
        raise BadRow(f"image {named}: can't be read ({str(error).splitlines()[0]})") from None
