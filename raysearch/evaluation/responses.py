"""What a model's free text says: the letter of an option, yes or no, a number, or the items of a list.

A response that says nothing, or several things, is read as None: nothing is guessed.
"""

import math
import re
import string
import unicodedata
from collections.abc import Iterator, Sequence

LETTERS = string.ascii_uppercase
_FULL_WIDTH = {code + 0xFEE0: chr(code) for code in range(0x21, 0x7F)}
_SIGNS = {
    **dict.fromkeys(map(ord, "“”„«»「」『』"), '"'),
    **dict.fromkeys(map(ord, "‘’‚"), "'"),
    **dict.fromkeys(map(ord, "‐‑‒–—−"), "-"),
    **dict.fromkeys(map(ord, "\u00a0\u2002\u2003\u2009\u202f\u3000"), " "),
    ord("。"): ".", ord("、"): ",", ord("…"): "...", ord("【"): "[", ord("】"): "]", ord("〔"): "(", ord("〕"): ")",
}  # fmt: skip
_WRAPPED = (re.compile(r"<answer>(.*?)</answer>", re.S | re.I), re.compile(r"\\boxed\s*{((?:[^{}]|{[^{}]*})*)}"))
_MARKUP = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*{([^{}]*)}")
_NOT = re.compile(r"(?:\b(?:not|no|never|neither|nor)|n't)\s+(?:an?\s+|the\s+)?$")
_NUMBER = r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:(?<=[0-9])\.[0-9]*|\.[0-9]+)?(?:(?<=[0-9.])[eE][-+]?[0-9]+)?"
_NUMBERS = re.compile(rf"(?<![\w.]){_NUMBER}(?:\s?%)?(?![\w%]|\.\w)")
_CURRENCIES = "$€£¥"


def behind_thoughts(response: str) -> str:
    """What a response says after thinking aloud."""
    return response.rpartition("</think>")[2]


def plain(text: str) -> str:
    """The text without Markdown, with composed letters and the punctuation of ASCII: full-width signs, typographic
    quotes, dashes."""
    text = unicodedata.normalize("NFC", text).translate(_FULL_WIDTH).translate(_SIGNS)
    return re.sub(r"\*\*|__|`|(?<!\w)[*_]|[*_](?!\w)", "", text)


def folded(text: str) -> str:
    """Lower case, single spaces, without quotes around it and signs that end a sentence; signs inside stay."""
    return " ".join(plain(text).casefold().split()).strip("\"' ").rstrip(".!?;:, \"'")


def normalised(text: str) -> str:
    """Lower case, without punctuation, single spaces. Signs within a number and its sign stay: 3-4 is not 34."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain(text).casefold())
    in_number = r"(?<=\d)[^\w\s](?=\d)|(?<!\w)[-.]+(?=\d)"
    return " ".join(re.sub(rf"({in_number})|[^\w\s]|_", _kept, text).split())


def _kept(found: re.Match[str]) -> str:
    """What belongs to a number, and marks that belong to a letter."""
    return found[0] if found[1] or unicodedata.category(found[0]).startswith("M") else ""


def chosen_letter(response: str, options: Sequence[str]) -> str | None:
    """The letter of the option that a response names; None if it names none or several.

    By the first of: what is in `<answer>` or `\\boxed{}`; a lone letter (`B`, `(b)`, `**B**`), also on the first or the
    last line; an option's text; `answer is B`; `option B`; a letter before the rest (`B. a dog`); the only letter in
    brackets; the only option whose text is in the response and not denied.
    """
    options = options[: len(LETTERS)]
    letters, text = LETTERS[: len(options)], _MARKUP.sub(r"\1", response.strip())
    if not letters:
        return None
    for pattern in _WRAPPED:
        wrapped = set(pattern.findall(text))
        if wrapped:
            inside = {chosen_letter(part, options) for part in wrapped}
            return inside.pop() if len(inside) == 1 else None
    text = plain(text).strip()
    for candidates in (
        _alone(text, letters),
        _option_of(text, options),
        _said(r"\banswer\b|答案", text, letters, options),
        _said(r"\b(?:option|choice)\b|选项|选择?", text, letters, options),
        _before_the_rest(text, letters),
        set(re.findall(rf"[(\[{{]([{letters}])[)\]}}]", text)),
        {letters[index] for index in _mentioned(folded(text), [folded(option) for option in options])},
    ):
        if candidates:
            return candidates.pop() if len(candidates) == 1 else None
    return None


def _alone(text: str, letters: str) -> set[str]:
    """The letters that are the first or the last line, which may be the whole text."""
    lines = [line for line in text.splitlines() if line.strip()]
    alone = rf"[\s\"'(\[{{<]*([{letters}{letters.lower()}])[\s\"')\]}}>.,:;!]*"
    found = [re.fullmatch(alone, line) for line in (*lines[:1], *lines[-1:])]
    return {line[1].upper() for line in found if line}


def _said(word: str, text: str, letters: str, options: Sequence[str]) -> set[str]:
    """The letters behind `answer is`, `answer:`, `option` and the like; `A` may begin an option's text instead, and a
    small letter is one at the text's end."""
    begin = rf"(?i:(?:{word})(?:\s+(?:is|would be|should be|must be)|应?[是为])?)\s*[:=]?\s*(?i:option|choice)?\s*"
    letter = rf"[\"'(\[{{]*([{letters}](?![A-Za-z\d_'+-])|[{letters.lower()}](?=[\"')\]}}.:]*\s*\Z))"
    found = set()
    for at in re.finditer(rf"{begin}{letter}(?:[\"')\]}}]*\s*(?:or|and|/|,)\s*{letter})?", text):
        found |= {_option_begun(text[at.start(1) :], options) or at[1].upper(), *filter(None, [(at[2] or "").upper()])}
    return found


def _before_the_rest(text: str, letters: str) -> set[str]:
    """The letter in front; not a word (`A`, `I`), nor the first of several."""
    found = re.match(rf"[\"'(\[{{]*([{letters}])(?:([)\]}}.:])|,|\s+-\s|\s)", text)
    if not found or (not found[2] and found[1] in "AI"):
        return set()
    others = rf"\(([{letters}])\)" if found[2] else rf"\b([{letters}])\b"
    return {found[1]} if set(re.findall(others, text)) <= {found[1]} else set()


def _option_begun(text: str, options: Sequence[str]) -> str | None:
    """The letter of the longest option that a text of several words begins with."""
    begun = [o for o in options if " " in o.strip() and (normalised(text) + " ").startswith(normalised(o) + " ")]
    return LETTERS[options.index(max(begun, key=len))] if begun else None


def _option_of(text: str, options: Sequence[str]) -> set[str]:
    """The letter of the only option with this text: as it is, else without punctuation."""
    for form in (folded, normalised):
        texts = [form(option) for option in options]
        if form(text) and texts.count(form(text)) == 1:
            return {LETTERS[texts.index(form(text))]}
    return set()


def _mentioned(text: str, options: Sequence[str]) -> Iterator[int]:
    """Indices of the options in a text, but not within a longer one, nor behind a `not`; both are `folded`."""
    for index in sorted(range(len(options)), key=lambda index: -len(options[index])):
        if not options[index]:
            continue
        pattern = re.compile(rf"(?<![\w.,/:+-]){re.escape(options[index])}(?![\w+%/-]|[.,:]\w)")
        if any(not _NOT.search(text[: found.start()]) for found in pattern.finditer(text)):
            yield index
        text = pattern.sub("\0", text)


def said_yes_no(response: str) -> str | None:
    """`yes` or `no`: the first word, else the only one of the two in the response; else None."""
    words = re.findall(r"[^\W_]+", plain(response).casefold())
    both = {"yes", "no"} <= set(words)
    if both and (words[1] in ("or", "and") or set(words) <= {"yes", "no", "or", "and"}):
        return None  # the question's own words
    found = {"yes", "no"} & set(words[:1]) or {"yes", "no"} & set(words)
    return found.pop() if len(found) == 1 else None


def number_of(text: str) -> float | None:
    """The number that a text is, with a currency, a percent sign or thousands; else None."""
    text = plain(text).strip().rstrip(".").strip()
    sign, text = (text[0], text[1:]) if text[:1] in ("-", "+") else ("", text)
    text = text.strip(_CURRENCIES + " ")
    if not re.fullmatch(rf"{_NUMBER}\s*%?", text) or not any(letter.isdigit() for letter in text):
        return None
    try:
        value = float(sign + text.rstrip("% ").replace(",", ""))
    except ValueError:
        return None
    value = value / 100 if text.endswith("%") else value
    return value if math.isfinite(value) else None


def number_in(text: str) -> float | None:
    """The number that a text is, or the only one in it."""
    whole = number_of(text)
    if whole is not None:
        return whole
    found = [part for part in _NUMBERS.findall(plain(text)) if any(letter.isdigit() for letter in part)]
    return number_of(found[0]) if len(found) == 1 else None


def items_of(text: str) -> set[str]:
    """The items of a list, `normalised`: at commas, semicolons, line breaks, `and`, `&`; with or without brackets."""
    text = re.sub(r"(?m)^\s*(?:[-*•]|\d+[.)])\s+", "", plain(text)).strip().strip("[]{}()")
    parts = re.split(r"(?<!\d),|,(?!\d)|[;\n&]|\band\b", text, flags=re.I)
    return {item for part in parts if (item := normalised(part))}
