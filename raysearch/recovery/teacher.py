"""The dense model as teacher: its last normalised states of answer tokens.

Logits are `head(states)` exactly, so one small tensor per sample serves both distillation losses. The teacher sees
images through its own tower and projector, and is in eval mode. `teacher_cache.CachedTeacher` computes each state once
per study.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.data.encoding import IGNORED
from raysearch.families import Family


def answer_states(model: PreTrainedModel, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Last normalised hidden states at the positions whose next token is an answer token.

    Args:
        model: any model of transformers whose `base_model` is everything but the language head.
        batch: of `Encoder.collate`; `labels` (batch, seq).

    Returns:
        (n, hidden), row by row; `answer_labels(batch)` are the tokens that these states predict.
    """
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    for key, value in inputs.items():
        if value.is_floating_point():
            inputs[key] = value.to(model.dtype)
    states = model.base_model(**inputs, use_cache=False).last_hidden_state  # (batch, seq, hidden)
    return states[:, :-1][batch["labels"][:, 1:] != IGNORED]


def answer_labels(batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The answer tokens of a batch, (n,), row by row; a row's first token is predicted by nothing and left out."""
    labels = batch["labels"][:, 1:]
    return labels[labels != IGNORED]


def num_answer_labels(row: Mapping[str, torch.Tensor]) -> int:
    """How many entries of `answer_labels` are one encoded row's."""
    return int((row["labels"][1:] != IGNORED).sum())


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

    def __init__(self, model: PreTrainedModel, family: Family) -> None:
        """`model` is the dense one; it is put into eval mode and its weights never change."""
        self.model = model.eval()
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
        """States of a batch's answer tokens, (n, hidden), as `answer_states` orders them.

        Args:
            batch: of `Encoder.collate`.
            places: of the batch's rows in the data; negative for a row without answers.
        """
        inputs = {key: value.to(self.model.device) for key, value in batch.items()}
        with torch.no_grad():
            return answer_states(self.model, inputs).to(batch["labels"].device)

    def head_on(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """From `targets` on `device` to logits, (n, hidden) to (n, vocabulary): the dense model's language head,
        copied there once if the model is elsewhere."""
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
