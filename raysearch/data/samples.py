"""A sample: one conversation about any number of images; and how rows of the usual formats become samples."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysearch.data.bad_rows import BadRow
from raysearch.data.pictures import Picture, picture_from
from raysearch.files import parse_json

_IMAGE = "<image>"
_ROLES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "chatgpt", "function_call", "tool_call"),
    "system": ("system", "developer"),
    "tool": ("tool", "observation", "function", "tool_response"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_TURN_COLUMNS = ("conversations", "messages", "conversation")
_TEMPLATE_KEYS = ("name", "reasoning_content", "tool_calls", "tool_call_id")
"""Keys of a turn, besides role and content, that chat templates read."""


@dataclass(frozen=True)
class Sample:
    """One conversation.

    Attributes:
        id: number of its row, behind the name of its source where there are several.
        source: the collection that it belongs to.
        images: in the order of their placeholders.
        messages: for `apply_chat_template`: role, content as a list of text and image parts, and `_TEMPLATE_KEYS`.
        tools: descriptions of tools, for `apply_chat_template`.
        problem: why the row can't be used; everything else is then empty.
    """

    id: str
    source: str
    images: tuple[Picture, ...]
    messages: list[dict[str, Any]]
    tools: tuple[dict[str, Any], ...] = ()
    problem: str = ""

    def text_of(self, index: int) -> str:
        """The text of a message, without images."""
        return "".join(part.get("text", "") for part in self.messages[index]["content"])


def sample_from_row(row: Any, name: str, image_folders: Sequence[Path] = ()) -> Sample:
    """Read a row.

    LLaVA and ShareGPT: `conversations` of {"from", "value"} with `<image>` in the text, and `image` or `images`.
    OpenAI, TRL and Qwen: `messages` of {"role", "content"}, or `prompt` and `completion`; the content is a text or a
    list of parts, and images are in the parts or in `images`. Lists may be the text of JSON.

    Args:
        name: the sample's id.
        image_folders: where paths are looked up, in this order.

    Raises:
        BadRow: no answer, a malformed turn, a missing image, or images and placeholders that don't match.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object with keys and values")
    messages, inline = [], []
    for turn in _turns_of(row):
        message, found = _message(turn)
        messages.append(message)
        inline += found
    images = _matched(messages, inline, _images_of(row))
    while messages and messages[-1]["role"] != "assistant":
        messages.pop()
    sample = Sample(name, source_of(row), tuple(picture_from(i, image_folders) for i in images), messages, _tools(row))
    roles = [message["role"] for message in messages]
    if not any(sample.text_of(i).strip() for i, role in enumerate(roles) if role == "assistant"):
        raise BadRow("no answer")
    if "user" not in roles or roles.index("assistant") < roles.index("user"):
        raise BadRow("begins with an answer, so there is nothing to answer")
    if sum(part["type"] == "image" for message in messages for part in message["content"]) != len(images):
        raise BadRow("an image behind the last answer")
    return sample


def source_of(row: Any) -> str:
    """The row's own, else the first folder of its image's path (as in LLaVA's mix), else `images` or `text`."""
    if not isinstance(row, Mapping):
        return "text"
    if row.get("source"):
        return str(row["source"])
    image = row.get("image")
    if isinstance(image, str) and image:
        folders = Path(image[:200]).parts[:-1]
        return folders[0] if folders else "images"
    return "images" if image or row.get("images") else "text"


def _turns_of(row: Mapping[str, Any]) -> Sequence[Any]:
    for name in _TURN_COLUMNS:
        turns = _parsed(row.get(name))
        if isinstance(turns, Mapping):  # a column of lists, as older versions of datasets keep a list of objects
            turns = _rows_of(turns)
        if isinstance(turns, Sequence) and not isinstance(turns, str) and turns:
            return turns
    prompt, completion = _parsed(row.get("prompt")), _parsed(row.get("completion"))
    if isinstance(prompt, list) and isinstance(completion, list):
        return [*prompt, *completion]
    raise BadRow(f"no conversations and no messages; it has {', '.join(map(str, row)) or 'no keys'}")


def _message(turn: Any) -> tuple[dict[str, Any], list[Any]]:
    """A turn for the chat template, and per image part the picture in it, or None."""
    if not isinstance(turn, Mapping):
        raise BadRow("a turn that is not an object")
    given = turn.get("role") if turn.get("from") is None else turn["from"]
    role = _ROLE_OF.get(str(given).lower())
    if role is None:
        raise BadRow(f"a turn of {given!r}; known are {', '.join(_ROLE_OF)}")
    message: dict[str, Any] = {"role": role}
    for key in _TEMPLATE_KEYS:
        if turn.get(key):
            message[key] = _json_value(turn[key], key)
    content = turn.get("content") if turn.get("value") is None else turn["value"]
    if content is None and "tool_calls" in message:
        content = ""
    if isinstance(content, Mapping):
        content = [content]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise BadRow("a turn without content")
    message["content"] = _parts(content) if isinstance(content, str) else [part for c in content for part in _part(c)]
    pictures = [part.pop("image", None) for part in message["content"] if part["type"] == "image"]
    return message, pictures


def _part(part: Any) -> list[dict[str, Any]]:
    """A part of a turn's content as text and image parts; an image part may hold its picture."""
    if isinstance(part, str):
        return _parts(part)
    given = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = given.get("type") or next((kind for kind in ("image", "image_url", "text") if kind in given), None)
    if kind in ("text", "input_text", "output_text"):
        text = given.get("text", "")
        if not isinstance(text, str):
            raise BadRow(f"a part whose text is {type(text).__name__}")
        return _parts(text)
    if kind in ("image", "image_url", "input_image"):
        picture = {key: value for key, value in given.items() if key not in ("type", "text")}
        return [{"type": "image", "image": picture or None}]
    raise BadRow(f"a part of type {kind!r}; known are text and image")


def _parts(text: str) -> list[dict[str, Any]]:
    """Text with `<image>` placeholders as parts, without the line breaks around placeholders."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow("a text with half a character (a lone surrogate)") from None
    parts: list[dict[str, Any]] = []
    for index, piece in enumerate(text.split(_IMAGE)):
        if index:
            parts.append({"type": "image"})
        stripped = piece.strip("\n") if _IMAGE in text else piece
        if stripped:
            parts.append({"type": "text", "text": stripped})
    return parts or [{"type": "text", "text": ""}]


def _matched(messages: list[dict[str, Any]], inline: list[Any], column: list[Any]) -> list[Any]:
    """The row's images in the order of their placeholders.

    An image of the column goes to a placeholder without a picture of its own; one alone, without a placeholder, comes
    before the first question, as in LLaVA's loader.
    """
    num_open = inline.count(None)
    if not num_open and len(column) == len(inline):  # the same images twice
        return inline
    first = next((message for message in messages if message["role"] == "user"), None)
    if not inline and len(column) == 1 and first is not None:
        first["content"] = [{"type": "image"}, *first["content"]]
        return column
    if num_open != len(column):
        raise BadRow(f"{num_open} image placeholders for {len(column)} images")
    rest = iter(column)
    return [next(rest) if image is None else image for image in inline]


def _images_of(row: Mapping[str, Any]) -> list[Any]:
    given = next((row[name] for name in ("images", "image") if not _is_nothing(row.get(name))), None)
    given = _parsed(given)
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]


def _is_nothing(value: Any) -> bool:
    return value is None or (isinstance(value, str | list | tuple) and not len(value))


def _tools(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    tools = _parsed(row.get("tools"))
    if _is_nothing(tools):
        return ()
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise BadRow("tools that are not a list of objects")
    return tuple(_json_value(tools, "tools"))


def _json_value(value: Any, name: str) -> Any:
    """A value of lists, objects, texts and numbers; the arguments of tool calls, which may be the text of JSON, read.

    Raises:
        BadRow: it is of another kind.
    """
    try:
        copied = json.loads(json.dumps(value))
    except (TypeError, ValueError, RecursionError):
        raise BadRow(f"{name}: not made of lists, objects, texts and numbers") from None
    if name == "tool_calls":
        calls = copied if isinstance(copied, list) else []
        for function in (call.get("function", call) for call in calls if isinstance(call, dict)):
            if isinstance(function, dict) and "arguments" in function:
                function["arguments"] = _parsed(function["arguments"])
    return copied


def _parsed(value: Any) -> Any:
    """A list or object given as the text of JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(value)
        except ValueError:
            return value
    return value


def _rows_of(columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    lists = {key: value for key, value in columns.items() if isinstance(value, list)}
    return [dict(zip(lists, values, strict=True)) for values in zip(*lists.values(), strict=True)] if lists else []
