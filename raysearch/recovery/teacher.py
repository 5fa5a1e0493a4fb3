"""The dense model as teacher: its last normalised states of answer tokens, computed once and kept.

Logits are `head(states)` exactly, so one small tensor per sample serves both distillation losses. The teacher sees
images through its own tower and projector, and is in eval mode.
"""

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.data.encoding import IGNORED
from raysearch.families import Family

CACHE_BYTES = 4 * 2**30


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
    """States of the dense model, by sample. Beyond `cache_bytes` they are computed anew each time."""

    def __init__(self, model: PreTrainedModel, family: Family, cache_bytes: int = CACHE_BYTES) -> None:
        """`model` is the dense one; it is put into eval mode and never changed."""
        self.model = model.eval()
        self._family = family
        self._kept: dict[str, torch.Tensor] = {}
        self._free_bytes = cache_bytes
        self._heads: dict[torch.device, Callable[[torch.Tensor], torch.Tensor]] = {}

    @torch.no_grad()
    def targets(self, batch: Mapping[str, torch.Tensor], sample_ids: Sequence[str]) -> torch.Tensor:
        """States of a batch's answer tokens, (n, hidden), as `answer_states` orders them.

        Args:
            batch: of `Encoder.collate`.
            sample_ids: of the batch's rows; a sample's id must always stand for the same tokens.
        """
        device = batch["labels"].device
        if all(name in self._kept for name in sample_ids):
            return torch.cat([self._kept[name] for name in sample_ids]).to(device)
        inputs = {key: value.to(self.model.device) for key, value in batch.items()}
        states = answer_states(self.model, inputs)
        counts = (batch["labels"][:, 1:] != IGNORED).sum(1).tolist()
        for name, own in zip(sample_ids, states.cpu().split(counts), strict=True):
            self._keep(name, own)
        return states.to(device)

    def logits(self, states: torch.Tensor) -> torch.Tensor:
        """The dense model's logits, (n, vocabulary), of `targets`."""
        return self.head_on(states.device)(states)

    def head_on(self, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
        """The dense model's language head on `device`; copied there once if the model is elsewhere."""
        if device not in self._heads:
            copied = self.model
            if device != self.model.device:
                copied = _HeadAlone(self.model.config, self._family.lm_head(self.model), device)
            self._heads[device] = language_head(copied, self._family)
        return self._heads[device]

    def _keep(self, name: str, states: torch.Tensor) -> None:
        if name not in self._kept and states.nbytes <= self._free_bytes:
            self._kept[name] = states.clone()
            self._free_bytes -= states.nbytes


class _HeadAlone:
    """As much of a model as `language_head` looks at."""

    def __init__(self, config: PretrainedConfig, module: nn.Module, device: torch.device) -> None:
        self.config, self._module = config, copy.deepcopy(module).to(device)

    def get_output_embeddings(self) -> nn.Module:
        return self._module
