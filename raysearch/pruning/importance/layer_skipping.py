"""Run decoder layers again without the rest of the model, to measure the loss of many shortened decoders."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import family_for
from raysearch.pruning.importance.calibration import Batch


@dataclass
class _Recorded:
    """One batch: each layer's input as the dense model computed it, and what else the layer was called with."""

    start: torch.Tensor
    calls: list[tuple[tuple, dict[str, Any]]]
    labels: torch.Tensor


class Replay:
    """The calibration loss with any layers left out; vision tower, projector and masks are computed once.

    Memory: one hidden state per batch and the shared masks and rotary embeddings.
    """

    def __init__(self, model: PreTrainedModel, batches: Iterable[Batch]) -> None:
        self.model, self.family = model, family_for(model)
        self.layers = list(self.family.decoder(model).layers)
        self.num_layers = len(self.layers)
        self.num_fixed = self.family.num_leading_layers_kept(model.config)
        self.norm, self.head = self.family.final_norm(model), self.family.lm_head(model)
        self.finish: Callable[[torch.Tensor], torch.Tensor] | None = None
        self.batches = [self._record(batch) for batch in batches]
        self.num_answer_tokens = sum(int((batch.labels[:, 1:] != -100).sum()) for batch in self.batches)

    def loss(self, layers: Sequence[int]) -> float:
        """Mean negative log-likelihood of the answer tokens, through `layers` only."""
        return sum(self._nll(batch, self._run(batch, layers)) for batch in self.batches) / self._tokens

    def losses_without_each(self, layers: Sequence[int]) -> dict[int, float]:
        """For each droppable layer of `layers`, the loss of the others; layers in front are shared."""
        totals = {i: 0.0 for i in layers if i >= self.num_fixed}
        for batch in self.batches:
            hidden = self._run(batch, [i for i in layers if i < self.num_fixed])
            behind = [i for i in layers if i >= self.num_fixed]
            for place, i in enumerate(behind):
                totals[i] += self._nll(batch, self._through(batch, hidden, behind[place + 1 :]))
                hidden = self._through(batch, hidden, [i])
        return {i: total / self._tokens for i, total in totals.items()}

    @property
    def _tokens(self) -> int:
        return max(self.num_answer_tokens, 1)

    def _record(self, batch: Batch) -> _Recorded:
        calls: list[tuple[tuple, dict[str, Any]]] = []
        start: list[torch.Tensor] = []

        def note(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            kwargs = dict(kwargs)
            hidden = args[0] if args else kwargs.pop("hidden_states")
            if len(calls) == self.num_fixed:
                start.append(hidden)  # from here on, nothing enters between layers
            calls.append((args[1:], kwargs))

        handles = [layer.register_forward_pre_hook(note, with_kwargs=True) for layer in self.layers]
        try:
            inputs = {name: value for name, value in batch.items() if name != "labels"}
            if self.finish is None:
                logits = self.model(**inputs, use_cache=False).logits
            else:
                self.model.base_model(**inputs, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        recorded = _Recorded(start[0], calls, batch["labels"])
        if self.finish is None:
            self.finish = self._finish_of(recorded, logits)
        return recorded

    def _finish_of(self, batch: _Recorded, logits: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """What the model does behind the head: some classes cap or scale the logits, others with the same settings
        don't, so that the first batch decides.

        Raises:
            InputError: nothing known.
        """
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
        for finish in known:
            if torch.allclose(finish(raw), expected, atol=5e-2, rtol=1e-2):
                return finish
        raise InputError(
            f"{type(self.model).__name__}: its logits are not its head applied to its final norm, so criteria of the "
            "loss can't be measured; choose block_influence"
        )

    def _run(self, batch: _Recorded, layers: Sequence[int]) -> torch.Tensor:
        """Fixed first layers are in `start` already."""
        return self._through(batch, batch.start, [i for i in layers if i >= self.num_fixed])

    def _through(self, batch: _Recorded, hidden: torch.Tensor, layers: Sequence[int]) -> torch.Tensor:
        for i in layers:
            args, kwargs = batch.calls[i]
            output = self.layers[i](hidden, *args, **kwargs)
            hidden = output[0] if isinstance(output, tuple) else output
        return hidden

    def _nll(self, batch: _Recorded, hidden: torch.Tensor) -> float:
        """Sum over answer tokens; the head sees only the positions that predict one."""
        assert self.finish is not None
        logits, targets = self._raw_logits(batch, hidden)
        return float(nn.functional.cross_entropy(self.finish(logits), targets, reduction="sum").double())

    def _raw_logits(self, batch: _Recorded, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What the head says before each answer token, and the token: (tokens, vocabulary) fp32 and (tokens,)."""
        targets = batch.labels[:, 1:]
        chosen = targets != -100
        return self.head(self.norm(hidden[:, :-1][chosen])).float(), targets[chosen]
