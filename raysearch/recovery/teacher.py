"""The dense model as teacher: its states where students are compared with it.

Logits are exactly the head of the last normalised states, so one tensor per sample serves every distillation loss. The
teacher has its own vision tower and projector, in eval mode. `teacher_cache.CachedTeacher` computes each state once per
study.
"""

import copy
from collections.abc import Mapping, Sequence

import torch
from transformers import PreTrainedModel

from raysearch.models import Family
from raysearch.models.precision import fast_dtype
from raysearch.recovery.hidden_states import LAST_OF_ANSWERS, DistillationPoints
from raysearch.recovery.losses import LanguageHead


def language_head(model: PreTrainedModel, family: Family, device: torch.device | None = None) -> LanguageHead:
    """From last normalised states (n, hidden) to the whole model's logits, (n, vocabulary); on another device, or where
    that one is faster in another precision, a copy.

    That is the head's module and, where the model has it, the cap (Gemma 2) or scale (Granite, Cohere) of its logits.
    As decoders inside an LVLM these models do neither, whatever their configuration says.
    """
    module, config = family.lm_head(model), model.config
    if device is not None:
        dtype = fast_dtype(model.dtype, device)
        if (device, dtype) != (model.device, model.dtype):
            module = copy.deepcopy(module).to(device, dtype)
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)

    def head(states: torch.Tensor) -> torch.Tensor:
        logits = module(states)
        if scale != 1:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return head


class Teacher:
    """Computes the dense model's states at every call."""

    def __init__(self, model: PreTrainedModel, family: Family, points: DistillationPoints = LAST_OF_ANSWERS) -> None:
        """Set the dense `model` to eval mode; `points` are where students are compared with it."""
        self.model, self.points = model.eval(), points
        self._family = family
        self._heads: dict[torch.device, LanguageHead] = {}

    @property
    def vocabulary(self) -> int:
        """Size of its vocabulary."""
        return int(self._family.text_config(self.model.config).vocab_size)

    @property
    def hidden(self) -> int:
        """Hidden size of its decoder."""
        return int(self._family.text_config(self.model.config).hidden_size)

    def prepare(self, num_samples: int, device: torch.device) -> None:
        """Move the model to `device` for good; `targets` will be called for the first `num_samples` samples only."""
        self.model.to(device)

    def targets(self, batch: Mapping[str, torch.Tensor], sample_indices: Sequence[int]) -> torch.Tensor:
        """States of a batch, (n, states per position, hidden), in the order of `DistillationPoints.states`.

        Args:
            batch: of `Encoder.collate`.
            sample_indices: of the batch's rows in the data; negative for a row without answers.
        """
        inputs = {key: value.to(self.model.device) for key, value in batch.items()}
        with torch.no_grad():
            states = self.points.states(self.model, self._family, inputs)
        device = batch["labels"].device
        return states.to(device, fast_dtype(self.model.dtype, device))

    def head_on(self, device: torch.device) -> LanguageHead:
        """The dense model's head on `device`, (n, hidden) to (n, vocabulary), copied there once if need be; in fp32
        where bf16 is slow."""
        if device not in self._heads:
            self._heads[device] = language_head(self.model, self._family, device)
        return self._heads[device]
