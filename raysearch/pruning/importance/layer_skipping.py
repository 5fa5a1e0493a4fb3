"""Loss of a decoder with layers left out, without running the rest of the model again."""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch import progress
from raysearch.errors import InputError
from raysearch.models import family_for
from raysearch.models.pruned_config import fixed_layers
from raysearch.pruning.importance.calibration import Batch


@dataclass
class _RecordedBatch:
    """State in front of the first droppable layer, each layer's other arguments, and the labels."""

    start: torch.Tensor
    calls: list[tuple[tuple, dict[str, Any]]]
    labels: torch.Tensor


class LayerSkippingLoss:
    """Calibration loss with any layers left out; vision tower, projector and masks are computed once.

    Memory: one hidden state per batch and the shared masks and rotary embeddings.
    """

    def __init__(self, model: PreTrainedModel, batches: Iterable[Batch]) -> None:
        self.model, self.family = model, family_for(model)
        self.layers = list(self.family.decoder(model).layers)
        self.num_layers = len(self.layers)
        self.fixed = set(fixed_layers(model.config))
        self.num_leading = next(i for i in range(self.num_layers + 1) if i not in self.fixed)
        self.norm, self.head = self.family.final_norm(model), self.family.lm_head(model)
        self.to_logits: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.batches = [self._record(batch) for batch in batches]
        self.num_answer_tokens = max(sum(int((batch.labels[:, 1:] != -100).sum()) for batch in self.batches), 1)

    def loss(self, layers: Sequence[int]) -> float:
        """Mean negative log-likelihood of the answer tokens, through `layers` only."""
        return sum(self._loss(batch, self._run(batch, layers)) for batch in self.batches) / self.num_answer_tokens

    def losses_without_each(
        self, layers: Sequence[int], dense: Sequence[torch.Tensor] = (), tried: Collection[int] | None = None
    ) -> dict[int, float]:
        """For each droppable layer of `layers`, the loss of the others; layers in front of it run once for all.

        Args:
            tried: the layers to leave out, one at a time; None for all droppable ones.
            dense: what `log_probs` gives for all layers; with it, the divergence KL(dense || others) per answer token
                in place of the loss.
        """
        totals = {i: 0.0 for i in layers if i not in self.fixed and (tried is None or i in tried)}
        behind = [i for i in layers if i >= self.num_leading]
        last = max((position for position, i in enumerate(behind) if i in totals), default=0)
        for number, batch in enumerate(self.batches):
            hidden, wanted = batch.start, dense[number] if dense else None
            for position, i in enumerate(behind):
                if i in totals:
                    totals[i] += self._loss(batch, self._through(batch, hidden, behind[position + 1 :]), wanted)
                if position == last:
                    break
                hidden = self._through(batch, hidden, [i])
        return {i: total / self.num_answer_tokens for i, total in totals.items()}

    def log_probs(self, layers: Sequence[int]) -> Iterator[torch.Tensor]:
        """By batch, log-probabilities before each answer token, through `layers` only: (tokens, vocabulary) fp32."""
        assert self.to_logits is not None
        for batch in self.batches:
            logits, _ = self._raw_logits(batch, self._run(batch, layers))
            yield self.to_logits(logits).log_softmax(-1)

    def _record(self, batch: Batch) -> _RecordedBatch:
        calls: list[tuple[tuple, dict[str, Any]]] = []
        start: list[torch.Tensor] = []

        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if len(calls) == self.num_leading:
                start.append(hidden)  # behind it, nothing is added between layers
            calls.append((args[1:], kwargs))

        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with ExitStack() as hooks:
            for layer in self.layers:
                hooks.enter_context(layer.register_forward_pre_hook(record, with_kwargs=True))
            if self.to_logits is None:
                logits = self.model(**inputs, use_cache=False).logits
            else:
                self.model.base_model(**inputs, use_cache=False)
        recorded = _RecordedBatch(start[0], calls, batch["labels"])
        if self.to_logits is None:
            self.to_logits = self._logits_transform(recorded, logits)
        return recorded

    def _logits_transform(self, batch: _RecordedBatch, logits: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What the model does to the logits behind its head. Some classes cap or scale them, others ignore the same
        settings, so the first batch decides."""
        text = self.family.text_config(self.model.config)
        cap = getattr(text, "final_logit_softcapping", None) or 1.0
        scale = getattr(text, "logits_scaling", None) or getattr(text, "logit_scale", None) or 1.0
        raw, _ = self._raw_logits(batch, self._run(batch, range(self.num_layers)))
        expected = logits[:, :-1][batch.labels[:, 1:] != -100].float()
        known: tuple[Callable[[torch.Tensor], torch.Tensor], ...] = (
            lambda values: values,
            lambda values: torch.tanh(values / cap) * cap,
            lambda values: values / scale,
            lambda values: values * scale,
        )
        for transform in known:
            if torch.allclose(transform(raw), expected, atol=5e-2, rtol=1e-2):
                return transform
        raise InputError(
            f"{type(self.model).__name__}: its logits are not its head applied to its final norm, so criteria of the "
            "loss can't be measured; choose block_influence"
        )

    def _run(self, batch: _RecordedBatch, layers: Sequence[int]) -> torch.Tensor:
        return self._through(batch, batch.start, [i for i in layers if i >= self.num_leading])

    def _through(self, batch: _RecordedBatch, hidden: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        for i in layers:
            args, kwargs = batch.calls[i]
            output = self.layers[i](hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def _loss(self, batch: _RecordedBatch, hidden: torch.Tensor, dense: torch.Tensor | None = None) -> float:
        """Sum over answer tokens of the loss, or of the divergence from `dense`; the head runs only at positions that
        predict one."""
        assert self.to_logits is not None
        logits, targets = self._raw_logits(batch, hidden)
        if dense is None:
            return float(nn.functional.cross_entropy(self.to_logits(logits), targets, reduction="sum").double())
        found = self.to_logits(logits).log_softmax(-1)
        return float(nn.functional.kl_div(found, dense, reduction="sum", log_target=True).double())

    def _raw_logits(self, batch: _RecordedBatch, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The head's output before each answer token, (tokens, vocabulary) fp32, and the token, (tokens,)."""
        progress.step()
        targets = batch.labels[:, 1:]
        chosen = targets != -100
        return self.head(self.norm(hidden[:, :-1][chosen])).float(), targets[chosen]
