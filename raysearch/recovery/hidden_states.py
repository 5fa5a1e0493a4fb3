"""Hidden states that losses are computed from: before answer tokens, and where teacher and student are compared."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.config.settings import RecoverySettings
from raysearch.data.labels import IGNORED, last_states
from raysearch.models import Family


@dataclass(frozen=True)
class DistillationPoints:
    """Which states of a model are compared with another's.

    Attributes:
        layers: how many decoder layers lie before each state that is taken besides the last normalised one.
        image_token: its positions are compared too; None for the positions before answer tokens alone.
    """

    layers: tuple[int, ...] = ()
    image_token: int | None = None

    @classmethod
    def of(cls, settings: RecoverySettings, family: Family, config: PretrainedConfig) -> "DistillationPoints":
        """The points that the settings name in the dense model with `config`."""
        total = family.text_config(config).num_hidden_layers
        inner = {min(total - 1, max(1, round(depth * total))) for depth in settings.hidden_layers if depth < 1}
        images = settings.kd_tokens == "answers+images"
        return cls(tuple(sorted(inner)), family.image_token_id(config) if images else None)

    def in_student(self, kept_layers: Sequence[int]) -> "DistillationPoints":
        """The same points in a student with those of the dense layers: each behind as many of them as it kept."""
        passed = tuple(sum(kept < layer for kept in kept_layers) for layer in self.layers)
        return DistillationPoints(passed, self.image_token)

    def positions(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Where states are taken, (batch, seq - 1) of booleans; nowhere in a row without answers."""
        answers = batch["labels"][:, 1:] != IGNORED
        if self.image_token is None:
            return answers
        return answers | (batch["input_ids"][:, :-1] == self.image_token) & answers.any(1, keepdim=True)

    def labels(self, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The answer token behind each position, (n,), row by row; `IGNORED` where there is none."""
        return batch["labels"][:, 1:][self.positions(batch)]

    def num_positions(self, row: Mapping[str, torch.Tensor]) -> int:
        """How many positions one encoded row has."""
        return int(self.positions({key: row[key][None] for key in ("input_ids", "labels")}).sum())

    def states(self, model: PreTrainedModel, family: Family, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """States at the positions, (n, len(layers) + 1, hidden), row by row; the last normalised one comes last."""
        modules = [*family.decoder(model).layers, family.final_norm(model)] if self.layers else []
        found: dict[int, torch.Tensor] = {}

        def record(layer: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            found[layer] = args[0] if args else kwargs["hidden_states"]

        with ExitStack() as hooks:
            for layer in self.layers:
                hook = partial(record, layer)
                hooks.enter_context(modules[layer].register_forward_pre_hook(hook, with_kwargs=True))
            last = last_states(model, batch)
        positions = self.positions(batch)
        taken = (*(found[layer] for layer in self.layers), last)
        return torch.stack([states[:, :-1][positions] for states in taken], dim=1)


LAST_OF_ANSWERS = DistillationPoints()
"""The last normalised states before answer tokens, and no others."""
