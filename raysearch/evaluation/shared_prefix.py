"""Questions about the same pictures in one row: what they begin with is read once, the rest of each question alone.

A row holds the tokens that its questions begin with, pictures included, and behind them the rest of each question. A
mask lets the rest of a question see that beginning and itself, and positions count as if the question stood alone. So
every state is the one that it has alone, up to rounding, in every decoder that heeds such a mask and positions. Some
don't (positions along more than one axis, attention in both directions inside a picture, a window of attention): they
are told by asking a few questions both ways.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from raysearch.data.encoding import TOKEN_KEYS, Batch, Encoded, Encoder
from raysearch.data.labels import IGNORED

MAX_QUESTIONS_PER_ROW = 16
"""Attention takes the square of a row's length."""
NUM_TRIED = 4
"""Questions that are asked both ways before all are asked together."""
MAX_DIFFERENCE = 0.05
"""Of logits, relative to how they vary between answer tokens: rounding to bf16 makes .013 at most on the embedded LVLM,
dense and pruned, positions that are not heeded .12 and more, a mask .5 and more (tests/evaluation/test_shared_prefix.py)."""


def grouped(
    rows: Sequence[Encoded], image_ids: Sequence[str], image_token: int | None, longest: int | None = None
) -> list[list[int]]:
    """Indices of the rows that may be joined: of the same pictures, to the last pixel, behind the same tokens.

    Args:
        image_ids: of each row; rows of different ids are not compared.
        image_token: what stands for pictures among tokens; without one, no rows are joined.
        longest: the most tokens of a joined row; the window of the decoder's attention, which the mask would overrule.
    """
    if image_token is None:
        return [[index] for index in range(len(rows))]
    groups: dict[str, list[list[int]]] = defaultdict(list)
    for index, (row, name) in enumerate(zip(rows, image_ids, strict=True)):
        last = groups[name][-1] if groups[name] else None
        if last and _may_join([rows[i] for i in last], row, image_token, longest):
            last.append(index)
        else:
            groups[name].append([index])
    return [group for known in groups.values() for group in known]


def _may_join(known: Sequence[Encoded], row: Encoded, image_token: int, longest: int | None) -> bool:
    first, places = known[0], (row["input_ids"] == image_token).nonzero()
    if not len(places) or len(known) == MAX_QUESTIONS_PER_ROW:
        return False
    head = int(places[-1]) + 1
    num_tokens = head + sum(len(one["input_ids"]) - head for one in (*known, row))
    return (
        (longest is None or num_tokens <= longest)
        and torch.equal(first["input_ids"][:head], row["input_ids"][:head])
        and min(_first_label(first), _first_label(row)) > head
        and all(
            key in row and first[key].shape == row[key].shape and torch.equal(first[key], row[key])
            for key in first
            if key not in TOKEN_KEYS
        )
    )


def _first_label(row: Encoded) -> int:
    return int((row["labels"] != IGNORED).nonzero()[0])


def joined_batch(encoder: Encoder, groups: Sequence[Sequence[Encoded]]) -> Batch:
    """A row per group; `answer_labels` are those of the groups' rows, in their order."""
    rows, positions, owners = zip(*map(_joined, groups), strict=True)
    batch = encoder.collate(rows)
    batch["position_ids"] = pad_sequence(list(positions), batch_first=True)
    batch["attention_mask"] = _mask(pad_sequence(list(owners), batch_first=True, padding_value=-1))
    return batch


def _joined(rows: Sequence[Encoded]) -> tuple[Encoded, torch.Tensor, torch.Tensor]:
    """One row of several, its positions, and whose each token is: 0 for what all begin with, else 1, 2, ..."""
    shared = _num_shared(rows)
    tails = [len(row["input_ids"]) - shared for row in rows]
    joined = dict(rows[0])
    for key in TOKEN_KEYS:
        if key in joined:
            joined[key] = torch.cat([rows[0][key][:shared], *(row[key][shared:] for row in rows)])
    positions = torch.cat([torch.arange(shared), *(torch.arange(shared, shared + num) for num in tails)])
    owners = torch.arange(len(rows) + 1).repeat_interleave(torch.tensor([shared, *tails]))
    return joined, positions, owners


def _num_shared(rows: Sequence[Encoded]) -> int:
    """Tokens that all rows begin with; before its first answer token, each keeps a token of its own to predict it."""
    most = min(_first_label(row) for row in rows) - 1
    heads = torch.stack([row["input_ids"][:most] for row in rows])
    differ = (heads != heads[0]).any(0).nonzero()
    return int(differ[0]) if len(differ) else most


def _mask(owners: torch.Tensor) -> torch.Tensor:
    """(batch, 1, seq, seq) of 0 where a token (row) sees another (column), -inf elsewhere; each token sees itself."""
    before = torch.ones(owners.shape[1], owners.shape[1], dtype=torch.bool).tril()
    seen = before & ((owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None]))
    return torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)[:, None]


def honours_mask(ask: Callable[[Batch], torch.Tensor], encoder: Encoder, rows: Sequence[Encoded]) -> bool:
    """Whether a model answers `rows` joined as it answers them one by one.

    Args:
        ask: from a batch to logits before answer tokens, (num_answer_tokens, vocabulary).
        rows: that may be joined; the first few are tried.
    """
    rows = rows[:NUM_TRIED]
    try:
        joined = ask(joined_batch(encoder, [rows])).float()
    except (TypeError, ValueError, RuntimeError):  # how a model refuses a mask or positions is up to it
        return False
    alone = ask(encoder.collate(rows)).float()
    return bool((joined - alone).norm() <= MAX_DIFFERENCE * (alone - alone.mean(0)).norm())
