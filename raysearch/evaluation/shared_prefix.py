"""Several questions about the same images: their common prefix is computed once.

A joined row has the common prefix of its questions, images included, then the rest (tail) of each question. The mask
lets a tail attend to the prefix and to itself, and positions are those of the question alone. So every hidden state
equals the one of the question alone, up to rounding, in decoders that honour such a mask and positions. Those that
don't (multi-axis positions, bidirectional attention within images, sliding windows) are recognised by computing a few
questions both ways.

To generate, each question keeps a row of its own, which goes on from a copy of the prefix's KV cache.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from raysearch.data.encoding import TOKEN_KEYS, Batch, Encoded, Encoder, to_model
from raysearch.data.labels import IGNORED

MAX_QUESTIONS_PER_ROW = 16
"""Bounded, since attention is quadratic in the length of a row."""
NUM_TRIED = 4
"""Questions that are computed both ways before any are joined."""
MAX_DIFFERENCE = 0.05
"""Of logits, relative to their variation between answer tokens. On the embedded LVLM, dense and pruned, bf16 rounding
gives at most .013, ignored positions at least .12, an ignored mask at least .5."""
NUM_TRIED_TOKENS = 2
"""Generated both ways before any common prefix is kept: one behind the prompt, one behind an answer."""


def group_by_prefix(
    rows: Sequence[Encoded], image_ids: Sequence[str], image_token: int | None, longest: int | None = None
) -> list[list[int]]:
    """Indices of the rows that may be joined: they have the same images, pixel by pixel, after the same tokens.

    Args:
        image_ids: (num_rows,); only rows with the same id are compared.
        image_token: id of the image token; if None, no rows are joined.
        longest: most tokens of a joined row: the size of a sliding attention window, which the mask would override.
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
    return [group for of_image in groups.values() for group in of_image]


def _may_join(group: Sequence[Encoded], row: Encoded, image_token: int, longest: int | None) -> bool:
    first, image_positions = group[0], (row["input_ids"] == image_token).nonzero()
    if not len(image_positions) or len(group) == MAX_QUESTIONS_PER_ROW:
        return False
    head = int(image_positions[-1]) + 1
    num_tokens = head + sum(len(one["input_ids"]) - head for one in (*group, row))
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
    """Place of the first answer token; behind the row if it is a prompt."""
    return int((row["labels"] != IGNORED).nonzero()[0]) if "labels" in row else len(row["input_ids"])


def joined_batch(encoder: Encoder, groups: Sequence[Sequence[Encoded]]) -> Batch:
    """A batch with one row per group; its `answer_labels` are those of the groups' rows, in their order."""
    rows, positions, owners = zip(*map(_joined, groups), strict=True)
    batch = encoder.collate(rows)
    batch["position_ids"] = pad_sequence(list(positions), batch_first=True)
    batch["attention_mask"] = _mask(pad_sequence(list(owners), batch_first=True, padding_value=-1))
    return batch


def _joined(rows: Sequence[Encoded]) -> tuple[Encoded, torch.Tensor, torch.Tensor]:
    """The joined row; (seq,) positions; and (seq,) owners: 0 for the prefix, else the number of the row from 1."""
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
    """Length of the common prefix; it ends before the token that predicts a row's first answer token."""
    most = min(_first_label(row) for row in rows) - 1
    heads = torch.stack([row["input_ids"][:most] for row in rows])
    differ = (heads != heads[0]).any(0).nonzero()
    return int(differ[0]) if len(differ) else most


def _mask(owners: torch.Tensor) -> torch.Tensor:
    """(batch, 1, seq, seq), query by key: 0 where attended, else -inf; each token attends to itself."""
    causal = torch.ones(owners.shape[1], owners.shape[1], dtype=torch.bool).tril()
    visible = causal & ((owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None]))
    return torch.zeros(visible.shape).masked_fill(~visible, -torch.inf)[:, None]


def kept_prompts(
    model: PreTrainedModel, encoder: Encoder, groups: Sequence[Sequence[Encoded]], multiple: int = 1
) -> dict[str, Any]:
    """Arguments of `generate` for groups of prompts: the KV cache of each group's prefix, which is computed here once,
    and the tokens, (num_prompts, seq): padding, prefix, padding, rest of the prompt.

    Args:
        multiple: rests are padded to a multiple of it.
    """
    shared = [_num_shared(rows) for rows in groups]
    heads = [{**rows[0], **_tokens(rows[0], slice(0, num))} for rows, num in zip(groups, shared, strict=True)]
    tails = [_tokens(row, slice(num, None)) for rows, num in zip(groups, shared, strict=True) for row in rows]
    begun = to_model(encoder.collate(heads, padding_side="left"), model)
    rest = to_model(encoder.collate(tails, padding_side="left", multiple=multiple), model)
    # With a token that is left out: `generate` knows each class's positions, those of padded rows too.
    made = model.generate(
        **begun, do_sample=False, max_new_tokens=1, pad_token_id=encoder.pad_id, return_dict_in_generate=True
    )
    name = "cache" if "cache" in made else "past_key_values"  # before transformers 5.24
    owners = torch.arange(len(groups)).repeat_interleave(torch.tensor([len(rows) for rows in groups])).to(model.device)
    made[name].batch_select_indices(owners)
    for module in model.modules():  # Qwen-VL and its kin keep here how far positions are behind the tokens of pictures
        if isinstance(deltas := getattr(module, "rope_deltas", None), torch.Tensor):
            module.rope_deltas = deltas[owners]
    tokens = {key: torch.cat([begun[key][owners], value], dim=1) for key, value in rest.items()}
    return {**tokens, name: made[name]}


def _tokens(row: Encoded, part: slice) -> Batch:
    return {key: row[key][part] for key in TOKEN_KEYS if key in row}


def keeps_prompts(model: PreTrainedModel, encoder: Encoder, rows: Sequence[Encoded]) -> bool:
    """Whether a model goes on from the kept prefix of `rows` as it does from each prompt whole.

    Args:
        rows: prompts that may share their prefix; the first `NUM_TRIED` are compared.
    """
    rows = rows[:NUM_TRIED]
    longest_tail = max(len(row["input_ids"]) for row in rows) - _num_shared(rows)
    try:
        kept = _first_logits(
            model, kept_prompts(model, encoder, [rows, rows[:1]], multiple=longest_tail + 1), encoder.pad_id
        )
    except Exception:  # classes refuse a cache, or a part of their inputs, in different ways
        return False
    alone = _first_logits(
        model, to_model(encoder.collate([*rows, rows[0]], padding_side="left"), model), encoder.pad_id
    )
    return bool((kept - alone).norm() <= MAX_DIFFERENCE * (alone - alone.mean(0)).norm())


def _first_logits(model: PreTrainedModel, inputs: Mapping[str, Any], pad_id: int) -> torch.Tensor:
    """(num_prompts, NUM_TRIED_TOKENS x vocabulary)"""
    num = {"max_new_tokens": NUM_TRIED_TOKENS, "min_new_tokens": NUM_TRIED_TOKENS, "pad_token_id": pad_id}
    made = model.generate(**inputs, **num, do_sample=False, output_logits=True, return_dict_in_generate=True)
    return torch.cat(made.logits, dim=-1).float()


def honours_mask(logits: Callable[[Batch], torch.Tensor], encoder: Encoder, rows: Sequence[Encoded]) -> bool:
    """Whether a model gives the same logits for `rows` joined as for each alone.

    Args:
        logits: from a batch to the logits that predict its answer tokens, (num_answer_tokens, vocabulary).
        rows: may be joined; the first `NUM_TRIED` are compared.
    """
    rows = rows[:NUM_TRIED]
    try:
        joined = logits(joined_batch(encoder, [rows])).float()
    except (TypeError, ValueError, RuntimeError):  # models refuse such a mask or positions in different ways
        return False
    alone = logits(encoder.collate(rows)).float()
    return bool((joined - alone).norm() <= MAX_DIFFERENCE * (alone - alone.mean(0)).norm())
