"""The dense model as teacher: its states where students are compared with it.

Logits are the head of the last normalised states exactly, so one tensor per sample serves both distillation losses.
The teacher sees images through its own tower and projector, and is in eval mode. `teacher_cache.CachedTeacher` computes
each state once per study.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.models import Family
from raysearch.recovery.hidden_states import LAST_OF_ANSWERS, DistillationPoints


def language_head(model: PreTrainedModel, family: Family) -> Callable[[torch.Tensor], torch.Tensor]:
    """From last normalised states (n, hidden) to the logits that the whole model gives, (n, vocabulary).

    That is the head's module, and what some models do behind it: Gemma 2 caps logits, Granite and Cohere scale them.
    (As decoders inside an LVLM they do not, whatever their configuration says.)
    """
    module, config = family.lm_head(model), model.config
    cap = getattr(config, "final_logit_softcapping", None)
    scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)

    def head(states: torch.Tensor) -> torch.Tensor:
        logits = module(states)
        if scale != 1:
            logits = logits * scale
        return logits if cap is None else cap * torch.tanh(logits / cap)

    return head


class Teacher:
    """The dense model at work: its states are computed whenever they are asked for."""

    def __init__(self, model: PreTrainedModel, family: Family, compared: DistillationPoints = LAST_OF_ANSWERS) -> None:
        """`model` is the dense one; it is put into eval mode and its weights never change."""
        self.model, self.compared = model.eval(), compared
        self._family = family
        self._heads: dict[torch.device, Callable[[torch.Tensor], torch.Tensor]] = {}

    @property
    def vocabulary(self) -> int:
        """Tokens that it knows."""
        return int(self._family.text_config(self.model.config).vocab_size)

    @property
    def hidden(self) -> int:
        """Width of its states."""
        return int(self._family.text_config(self.model.config).hidden_size)

    def prepare(self, num_samples: int, device: torch.device) -> None:
        """Get ready for `targets` on `device`: the model goes there, and stays.

        Args:
            num_samples: only the first so many samples of the data will be asked for.
        """
        self.model.to(device)

    def targets(self, batch: Mapping[str, torch.Tensor], places: Sequence[int]) -> torch.Tensor:
        """States of a batch, (n, states per position, hidden), as `Compared.states` orders them.

        Args:
            batch: of `Encoder.collate`.
            places: of the batch's rows in the data; negative for a row without answers.
        """
        inputs = {key: value.to(self.model.device) for key, value in batch.items()}
        with torch.no_grad():
            return self.compared.states(self.model, self._family, inputs).to(batch["labels"].device)

    def head_on(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """From last normalised states on `device` to logits, (n, hidden) to (n, vocabulary): the dense model's language
        head, copied there once if the model is elsewhere."""
        if device not in self._heads:
            copied = self.model
            if device != self.model.device:
                copied = _HeadAlone(self.model.config, self._family.lm_head(self.model), device)
            self._heads[device] = language_head(copied, self._family)
        return self._heads[device]


class _HeadAlone:
    """As much of a model as `language_head` looks at."""

    def __init__(self, config: PretrainedConfig, module: nn.Module, device: torch.device) -> None:
        self.config, self._module = config, copy.deepcopy(module).to(device)

    def get_output_embeddings(self) -> nn.Module:
        return self._module
