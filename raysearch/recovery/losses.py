"""The three recovery losses: pure functions, one fp32 value per token.

A batch's loss is the mean over its answer tokens, and for distillation over all positions that are compared (all
workers and micro-batches together), so its scale depends neither on how long rows are nor on how they are split.
Symbols: n positions, v vocabulary, d hidden size, l states per position, the last normalised one last.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from raysearch.config.recipe import LOSS_FIELDS, Recipe
from raysearch.data.labels import IGNORED
from raysearch.recovery.memory_planner import KEPT_BYTES, LOGITS_AT_A_TIME

LOGITS_IN_CACHE = 2**21
"""Logits whose fp32 intermediates are made at once: 8 MiB a tensor, which a processor's cache and glibc's heap hold."""

Logits = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states (n, d) to logits (n, v): a language head."""
_ValueAndGradient = tuple[torch.Tensor, torch.Tensor]
"""A loss per row, (n,), and its gradient to the row's logits, (n, v); both fp32."""


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """-log p(label), in nats: (n, v), (n,) -> (n,); 0 where the label is `IGNORED`."""
    return _CrossEntropy.apply(logits, labels)


def kl_divergence(
    student: torch.Tensor,
    teacher: torch.Tensor,
    temperature: float = 1.0,
    direction: Literal["forward", "reverse"] = "forward",
) -> torch.Tensor:
    """KL divergence between softened answer distributions, times the squared temperature.

    Forward is KL(teacher || student), reverse KL(student || teacher), of softmax(logits / temperature). The factor
    temperature^2 keeps the gradient's size from falling with the temperature (Hinton et al., arXiv 1503.02531,
    section 2). Never negative: rounding is cut off at 0.

    Args:
        student: logits, (n, v).
        teacher: logits, (n, v), finite; constants, no gradient goes there.

    Returns:
        (n,), in nats.
    """
    return _KlDivergence.apply(student, teacher, temperature, direction)


class _OfLogits(torch.autograd.Function):
    """A loss per row of logits with its gradient by hand, which is kept in the logits' precision.

    Autograd would keep and pass over several fp32 tensors of (n, v). Here they are made for a few rows at a time.
    """

    @staticmethod
    def by_rows(
        ctx: Any, logits: torch.Tensor, loss: Callable[..., _ValueAndGradient], *given: torch.Tensor
    ) -> torch.Tensor:
        """The losses of all rows, (n,), by `loss` of some rows of the fp32 logits and of what else is `given`."""
        values = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits)
        for rows in _in_cache(logits):
            values[rows], gradient[rows] = loss(logits[rows].float(), *(each[rows] for each in given))
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        for rows in _in_cache(gradient):  # in its place, since a graph is gone back through once
            gradient[rows] = gradient[rows] * grad[rows, None]
        return gradient, *[None] * (len(ctx.needs_input_grad) - 1)


class _CrossEntropy(_OfLogits):
    """The gradient is softmax(logits), less 1 at the label."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return _OfLogits.by_rows(ctx, logits, _CrossEntropy._of_rows, labels)

    @staticmethod
    def _of_rows(logits: torch.Tensor, labels: torch.Tensor) -> _ValueAndGradient:
        places, ignored = labels.clamp_min(0)[:, None], labels == IGNORED
        log_p = F.log_softmax(logits, -1)
        values = -log_p.gather(1, places)[:, 0]
        gradient = log_p.exp_().scatter_add_(1, places, log_p.new_full(places.shape, -1.0))
        return values.masked_fill(ignored, 0), gradient.masked_fill_(ignored[:, None], 0)


class _KlDivergence(_OfLogits):
    """With q = softmax(student / T) and p the teacher's, the gradient is T (q - p) for forward, and for reverse
    T q (log q - log p - KL), T^2 included."""

    @staticmethod
    def forward(
        ctx: Any, student: torch.Tensor, teacher: torch.Tensor, temperature: float, direction: str
    ) -> torch.Tensor:
        of_rows = functools.partial(_KlDivergence._of_rows, temperature=temperature, direction=direction)
        return _OfLogits.by_rows(ctx, student, of_rows, teacher)

    @staticmethod
    def _of_rows(student: torch.Tensor, teacher: torch.Tensor, temperature: float, direction: str) -> _ValueAndGradient:
        log_q = F.log_softmax(student / temperature, -1)
        log_p = F.log_softmax(teacher.float() / temperature, -1)
        # A product with a probability of 0 is 0, since no logarithm of a softmax in fp32 is infinite.
        if direction == "forward":
            p = log_p.exp()
            divergence = torch.linalg.vecdot(p, log_p.sub_(log_q))
            gradient = log_q.exp_().sub_(p)
        else:
            ratio, q = log_p.neg_().add_(log_q), log_q.exp_()
            divergence = torch.linalg.vecdot(q, ratio)
            gradient = ratio.sub_(divergence[:, None]).mul_(q)
        return divergence.clamp_min(0).mul_(temperature**2), gradient.mul_(temperature)


def hidden_match(student: torch.Tensor, teacher: torch.Tensor, kind: Literal["mse", "cosine"] = "mse") -> torch.Tensor:
    """Distance of hidden states: (..., d), (..., d) -> (...).

    mse is mean_d (s - t)^2 / mean_d t^2: the mean squared error (arXiv 2604.24380 matches by squared L2) relative to
    the teacher's own mean square, so that a weight means the same for models with large and with small states.
    cosine is 1 - cos(s, t).
    """
    ours, theirs = student.float(), teacher.float()
    if kind == "cosine":
        return 1 - F.cosine_similarity(ours, theirs, dim=-1)
    scale = theirs.square().mean(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return (ours - theirs).square().mean(-1) / scale


@dataclass(frozen=True)
class LossTerms:
    """The losses that a recipe weighs."""

    weights: dict[str, float]
    """Weight by term, of the terms with a weight above 0."""
    temperature: float = 2.0
    kl: Literal["forward", "reverse"] = "forward"
    hidden: Literal["mse", "cosine"] = "mse"
    match_last: bool = True
    """Whether `hidden_kd` looks at the last normalised state, too."""

    @classmethod
    def of(cls, recipe: Recipe, match_last: bool = True) -> "LossTerms":
        """The terms of a recipe with recovery."""
        weights = {name: getattr(recipe, name) or 0.0 for name in LOSS_FIELDS}
        return cls(
            {name: weight for name, weight in weights.items() if weight > 0},
            recipe.temperature or 1.0,
            recipe.kl or "forward",
            recipe.hidden_match or "mse",
            match_last,
        )

    @property
    def need_teacher(self) -> bool:
        """Whether a term compares with the dense model."""
        return bool({"logits_kd", "hidden_kd"} & set(self.weights))

    @property
    def need_logits(self) -> bool:
        """Whether a term looks at the vocabulary."""
        return bool({"sft", "logits_kd"} & set(self.weights))

    def loss(self, sums: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> torch.Tensor:
        """The weighted sum of the terms' means, given how many tokens each is the mean of; no token counts as one."""
        means = [self.weights[name] / max(1, counts[name]) * value for name, value in sums.items()]
        return torch.stack(means).sum()

    def sums(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        head: Logits,
        teacher_hidden: torch.Tensor | None = None,
        teacher_head: Logits | None = None,
        vocabulary: int = 1,
    ) -> dict[str, torch.Tensor]:
        """Each term summed over its tokens, unweighted; 0, but with a gradient, when there is none. `hidden_kd` is the
        mean over the states that are compared at a position.

        Logits are made for `LOGITS_AT_A_TIME // vocabulary` tokens at a time. Their gradients are kept for the way back
        if they take no more than `KEPT_BYTES`; else they are made again there, so that memory does not grow with n.

        Args:
            hidden: the student's states, (n, l, d).
            labels: the answer token behind each position, (n,); `IGNORED` where there is none.
            head: the student's language head.
            teacher_hidden: the dense model's states at the same places, (n, l, d); None if no term needs them.
            teacher_head: the dense model's language head.
            vocabulary: v.
        """
        sums = {}
        if self.need_logits:
            theirs = None if teacher_hidden is None else teacher_hidden[:, -1]
            sums = self._logit_sums(hidden[:, -1], labels, head, theirs, teacher_head, vocabulary)
        if "hidden_kd" in self.weights:
            assert teacher_hidden is not None
            states = slice(None) if self.match_last else slice(-1)
            match = hidden_match(hidden[:, states], teacher_hidden[:, states], self.hidden)  # (n, l)
            sums["hidden_kd"] = match.mean(1).sum()
        return sums

    def _logit_sums(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        head: Logits,
        teacher_hidden: torch.Tensor | None,
        teacher_head: Logits | None,
        vocabulary: int,
    ) -> dict[str, torch.Tensor]:
        def of_chunk(chunk: torch.Tensor, own: torch.Tensor, theirs: torch.Tensor | None) -> list[torch.Tensor]:
            logits = head(chunk)
            found = []
            if "sft" in self.weights:
                found.append(cross_entropy(logits, own).sum())
            if "logits_kd" in self.weights:
                assert theirs is not None
                assert teacher_head is not None
                with torch.no_grad():
                    wanted = teacher_head(theirs)
                found.append(kl_divergence(logits, wanted, self.temperature, self.kl).sum())
            return found

        names = [name for name in ("sft", "logits_kd") if name in self.weights]
        chunks = list(_chunks(len(labels), max(1, LOGITS_AT_A_TIME // vocabulary)))
        kept_bytes = len(names) * len(labels) * vocabulary * hidden.element_size()
        again = len(chunks) > 1 and kept_bytes > KEPT_BYTES
        parts = []
        for chunk in chunks:
            theirs = None if teacher_hidden is None else teacher_hidden[chunk]
            given = (hidden[chunk], labels[chunk], theirs)
            parts.append(checkpoint(of_chunk, *given, use_reentrant=False) if again else of_chunk(*given))
        return {name: torch.stack(values).sum() for name, values in zip(names, zip(*parts, strict=True), strict=True)}


def _in_cache(logits: torch.Tensor) -> Iterator[slice]:
    """Rows of (n, v), as many at a time as `LOGITS_IN_CACHE` allows."""
    yield from _chunks(len(logits), max(1, LOGITS_IN_CACHE // logits.shape[1]))


def _chunks(total: int, size: int) -> Iterator[slice]:
    """Slices that cover `total` items; one empty slice for none."""
    for start in range(0, max(1, total), size):
        yield slice(start, min(total, start + size))
