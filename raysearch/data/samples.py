"""A sample: one conversation about any number of images; and how rows of the usual formats become samples."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raysearch.data.bad_rows import BadRow
from raysearch.data.pictures import Picture, is_base64, picture_from
from raysearch.files import parse_json

_IMAGE = re.compile("<image>")
_PLACEHOLDER = re.compile(
    r"<image>|<ImageHere>|<\|?image[ _](?P<number>\d{1,4})\|?>|(?:Picture \d+: ?)?<img>(?P<path>[^<>]{1,4096})</img>"
)
"""Where a picture belongs in a question: LLaVA's, InternLM's, by number (MMMU, Phi), and Qwen-VL's with its path."""
_ROLES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "model", "bot", "ai", "chatgpt", "function_call", "tool_call"),
    "system": ("system", "developer"),
    "tool": ("tool", "observation", "function", "tool_response"),
}
_ROLE_OF = {name: role for role, names in _ROLES.items() for name in names}
_TURN_COLUMNS = ("conversations", "messages", "conversation")
_PAIR_COLUMNS = (("prompt", "completion"), ("question", "answer"), ("query", "response"), ("instruction", "output"))
_PARTS_OF_A_QUESTION = ("options", "choices", "candidates", "context", "passage", "document", "hint")
_OTHER_MEDIA = ("video", "videos", "audio", "audios")
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
    list of parts, and images are in the parts or in `images`. Lists may be the text of JSON. A question and its answer
    as texts, in `_PAIR_COLUMNS`, are a conversation of one turn, behind those of `history`.

    Args:
        name: the sample's id.
        image_folders: where paths are looked up, in this order.

    Raises:
        BadRow: no answer, a malformed turn, a missing image, images and placeholders that don't match, or a video.
    """
    if not isinstance(row, Mapping):
        raise BadRow("not an object with keys and values")
    media = next((name for name in _OTHER_MEDIA if not _is_nothing(row.get(name))), None)
    if media:
        raise BadRow(f"it holds {media}; pictures and text are read")
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
    if isinstance(image, str) and image and not is_base64(image):
        folders = Path(image.removeprefix("file://")[:200]).parts[:-1]
        return folders[0] if folders else "images"
    return "text" if _is_nothing(image) and _is_nothing(row.get("images")) else "images"


def _turns_of(row: Mapping[str, Any]) -> Sequence[Any]:
    for name in _TURN_COLUMNS:
        turns = _parsed(row.get(name))
        if isinstance(turns, Mapping):  # a column of lists, as older versions of datasets keep a list of objects
            turns = _rows_of(turns)
        if isinstance(turns, Sequence) and not isinstance(turns, str) and turns:
            return turns
    for asked, answered in _PAIR_COLUMNS:
        question, answer = _parsed(row.get(asked)), _parsed(row.get(answered))
        if isinstance(question, list) and isinstance(answer, list):
            return [*question, *answer]
        if isinstance(question, str) and not _is_nothing(answer):
            return _turns_of_pair(row, question, answer)
    raise BadRow(f"no conversations and no messages; it has {', '.join(map(str, row)) or 'no keys'}")


def _turns_of_pair(row: Mapping[str, Any], question: str, answer: Any) -> list[dict[str, Any]]:
    """A question and its answer, behind earlier ones and a system's turn, as Alpaca and ms-swift name them."""
    more = next((name for name in _PARTS_OF_A_QUESTION if not _is_nothing(row.get(name))), None)
    if more:
        raise BadRow(f"a question with {more}; write it as a conversation, as the model is to be asked")
    earlier = _parsed(row.get("history")) or []
    if not isinstance(earlier, Sequence) or not all(isinstance(p, Sequence) and len(p) == 2 for p in earlier):
        raise BadRow("history that is not a list of questions with answers")
    if isinstance(row.get("input"), str) and row["input"].strip():
        question = f"{question}\n{row['input']}"
    system = [{"role": "system", "content": row["system"]}] if row.get("system") else []
    pairs = [*earlier, (question, answer)]
    roles = ("user", "assistant")
    return system + [{"role": r, "content": text} for p in pairs for r, text in zip(roles, p, strict=True)]


def _message(turn: Any) -> tuple[dict[str, Any], list[Any]]:
    """A turn for the chat template, and per image part the picture in it, or None."""
    if not isinstance(turn, Mapping):
        raise BadRow("a turn that is not an object")
    given = turn.get("role") if turn.get("from") is None else turn["from"]
    role = _ROLE_OF.get(str(given).strip().lower())
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
    if isinstance(content, int | float) and not isinstance(content, bool) and math.isfinite(content):
        content = str(content)
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise BadRow(f"a turn whose content is {kind}; it must be a text or a list of parts")
    given = [content] if isinstance(content, str) else content
    message["content"] = [part for one in given for part in _part(one, role)]
    pictures = [part.pop("image", None) for part in message["content"] if part["type"] == "image"]
    return message, pictures


def _part(part: Any, role: str) -> list[dict[str, Any]]:
    """A part of a turn's content as text and image parts; an image part may hold its picture."""
    if isinstance(part, str):
        return _parts(part, role)
    given = {key: value for key, value in part.items() if value is not None} if isinstance(part, Mapping) else {}
    kind = given.get("type") or next((kind for kind in ("image", "image_url", "text") if kind in given), None)
    if kind in ("text", "input_text", "output_text"):
        text = given.get("text", "")
        if not isinstance(text, str):
            raise BadRow(f"a part whose text is {type(text).__name__}")
        return _parts(text, role)
    if kind in ("image", "image_url", "input_image"):
        picture = {key: value for key, value in given.items() if key not in ("type", "text")}
        return [{"type": "image", "image": picture or None}]
    raise BadRow(f"a part of type {kind!r}; known are text and image")


def _parts(text: str, role: str) -> list[dict[str, Any]]:
    """Text with placeholders as parts, without the line breaks around them; an image part may hold its number or path.

    An answer's `<image 2>` speaks of a picture, so there it is text.
    """
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise BadRow("a text with half a character (a lone surrogate)") from None
    parts: list[dict[str, Any]] = []
    at = 0
    placeholder = _IMAGE if role == "assistant" else _PLACEHOLDER
    for found in [*placeholder.finditer(text), None]:
        piece = text[at : found.start() if found else None]
        piece = piece.strip("\n") if at or found else piece
        if piece:
            parts.append({"type": "text", "text": piece})
        if found:
            at = found.end()
            own = found.groupdict()
            number = int(own["number"]) if own.get("number") else None
            parts.append({"type": "image", "image": own.get("path") or number})
    return parts or [{"type": "text", "text": ""}]


def _matched(messages: list[dict[str, Any]], inline: list[Any], column: list[Any]) -> list[Any]:
    """The row's images in the order of their placeholders.

    An image of the column goes to a placeholder without a picture of its own, by its number if it has one; one alone,
    without a placeholder, comes before the first question, as in LLaVA's loader.
    """
    numbers = {image for image in inline if isinstance(image, int)}
    if numbers:
        if None in inline or numbers != set(range(1, len(column) + 1)):
            raise BadRow(f"image placeholders {sorted(numbers)} for {len(column)} images")
        return [column[image - 1] if isinstance(image, int) else image for image in inline]
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
    given = list(given) if isinstance(given, list | tuple) else [given]
    return [image for image in given if not _is_nothing(image)]


def _is_nothing(value: Any) -> bool:
    """Whether a cell is empty: null, NaN as tables write it, no text, no elements, or a picture without a source."""
    if isinstance(value, Mapping):
        return not any(value.values())
    if isinstance(value, str | bytes | list | tuple):
        return not len(value)
    return value is None or (isinstance(value, float) and math.isnan(value))


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
