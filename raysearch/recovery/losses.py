"""Recovery losses: pure functions of one fp32 value per position, a row of `LOSS_TERMS` each, and their weighted sum.

A term's loss is the mean over its positions of all workers and microbatches together, so its scale depends neither on
the rows' lengths nor on how they are split: over the answer tokens, or for a term that needs the teacher over the
distillation points. Symbols: n positions, v vocabulary, d hidden size, l states per position, the last normalised one
last.
"""

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from raysearch.config.recipe import LOSS_FIELDS, Recipe
from raysearch.data.labels import IGNORED
from raysearch.recovery.memory_planner import LOGITS_PER_CHUNK, MAX_GRADIENT_BYTES

LOGITS_IN_CACHE = 2**21
"""Logits whose fp32 intermediates are computed at once: 8 MiB a tensor, which fits a processor's cache and glibc's
heap."""

LanguageHead = Callable[[torch.Tensor], torch.Tensor]
"""From hidden states (n, d) to logits (n, v)."""
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
    section 2). Rounding below 0 is clamped to 0.

    Args:
        student: logits, (n, v).
        teacher: logits, (n, v), finite; constants, they get no gradient.

    Returns:
        (n,), in nats.
    """
    return _KlDivergence.apply(student, teacher, temperature, direction)


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
class LossTerm:
    """How one loss is computed; `LossWeight` at the recipe's field says from what.

    Attributes:
        name: the field of `Recipe` that weighs it.
        function: from the student's logits (n, v) or states (n, l, d), and the teacher's or else the answer tokens
            (n,), to fp32 values (n,) or (n, l). Without the teacher, values at `IGNORED` tokens are left out.
        options: fields of `Recipe` that hold further arguments of `function`, by argument.
    """

    name: str
    function: Callable[..., torch.Tensor]
    options: Mapping[str, str] = field(default_factory=dict)


def loss_table(*terms: LossTerm, fields: Collection[str] = LOSS_FIELDS) -> dict[str, LossTerm]:
    """The terms by name.

    Raises:
        ValueError: a term has no field that weighs it, a field no term, or an option isn't a field of `Recipe`.
    """
    table = {term.name: term for term in terms}
    if missing := table.keys() - set(fields):
        raise ValueError(f"{missing}: no such loss in config/recipe.py; add a field marked with LossWeight to Recipe")
    if missing := set(fields) - table.keys():
        raise ValueError(f"{missing}: no such loss in recovery/losses.py; add a LossTerm to LOSS_TERMS")
    if missing := {option for term in terms for option in term.options.values()} - Recipe.model_fields.keys():
        raise ValueError(f"{missing}: no such loss option in config/recipe.py; add a field to Recipe")
    return table


LOSS_TERMS = loss_table(
    LossTerm("sft", cross_entropy),
    LossTerm("logits_kd", kl_divergence, options={"temperature": "temperature", "direction": "kl"}),
    LossTerm("hidden_kd", hidden_match, options={"kind": "hidden_match"}),
)
"""Every loss that a recipe can weigh."""


@dataclass(frozen=True)
class RecoveryLoss:
    """The weighted sum of a recipe's loss terms.

    Attributes:
        weights: weight by term, of the terms with a weight above 0.
        options: further arguments of the terms' functions, by term; where left out, the functions' defaults.
        match_last: whether terms on states look at the last normalised state beside others.
    """

    weights: Mapping[str, float]
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    match_last: bool = True

    @classmethod
    def of(cls, recipe: Recipe, match_last: bool = True) -> "RecoveryLoss":
        """The loss of a recipe that trains something."""
        weights = recipe.loss_weights
        options = {
            name: {argument: getattr(recipe, option) for argument, option in LOSS_TERMS[name].options.items()}
            for name in weights
        }
        return cls(weights, options, match_last)

    def names(self, inputs: str | None = None, needs_teacher: bool | None = None) -> list[str]:
        """The terms computed from `inputs`, logits or states, and with or without the teacher; None for either."""
        marks = {name: LOSS_FIELDS[name] for name in self.weights}
        return [
            name
            for name, mark in marks.items()
            if inputs in (None, mark.inputs) and needs_teacher in (None, mark.needs_teacher)
        ]

    def loss(self, sums: Mapping[str, torch.Tensor], counts: Mapping[str, int]) -> torch.Tensor:
        """The weighted sum of the terms' means, from their `sums` and numbers of positions; 0 counts as 1."""
        return torch.stack([self.weights[name] / max(1, counts[name]) * value for name, value in sums.items()]).sum()

    def sums(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        head: LanguageHead,
        teacher_hidden: torch.Tensor | None = None,
        teacher_head: LanguageHead | None = None,
        vocabulary: int = 1,
    ) -> dict[str, torch.Tensor]:
        """Each term summed over its positions, unweighted; without any it is 0, with a gradient. A term on states is
        the mean over a position's states.

        Logits are computed for `LOGITS_PER_CHUNK // vocabulary` positions at a time. Their gradients are stored for the
        backward pass if they take at most `MAX_GRADIENT_BYTES`; else they are recomputed there, so that memory does not
        grow with n.

        Args:
            hidden: the student's states, (n, l, d).
            labels: the answer token behind each position, (n,); `IGNORED` where there is none.
            head: the student's language head.
            teacher_hidden: the dense model's states at the same positions, (n, l, d); None if no term needs them.
            teacher_head: the dense model's language head.
            vocabulary: v.
        """
        sums = {}
        if self.names("logits"):
            theirs = None
            if self.names("logits", needs_teacher=True):
                assert teacher_hidden is not None
                theirs = teacher_hidden[:, -1]
            sums = self._logit_sums(hidden[:, -1], labels, head, theirs, teacher_head, vocabulary)
        states = slice(-1) if hidden.shape[1] > 1 and not self.match_last else slice(None)
        for name in self.names("states"):
            theirs = None if teacher_hidden is None else teacher_hidden[:, states]
            sums[name] = self._sum(name, hidden[:, states], labels, theirs)
        return sums

    def _logit_sums(
        self,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        head: LanguageHead,
        teacher_hidden: torch.Tensor | None,
        teacher_head: LanguageHead | None,
        vocabulary: int,
    ) -> dict[str, torch.Tensor]:
        names = self.names("logits")

        def sums_of(states: torch.Tensor, own: torch.Tensor, theirs: torch.Tensor | None) -> list[torch.Tensor]:
            logits, teacher_logits = head(states), None
            if theirs is not None:
                assert teacher_head is not None
                with torch.no_grad():
                    teacher_logits = teacher_head(theirs)
            return [self._sum(name, logits, own, teacher_logits) for name in names]

        chunks = list(_chunks(len(labels), max(1, LOGITS_PER_CHUNK // vocabulary)))
        gradient_bytes = len(names) * len(labels) * vocabulary * hidden.element_size()
        recompute = len(chunks) > 1 and gradient_bytes > MAX_GRADIENT_BYTES
        parts = []
        for chunk in chunks:
            theirs = None if teacher_hidden is None else teacher_hidden[chunk]
            given = (hidden[chunk], labels[chunk], theirs)
            parts.append(checkpoint(sums_of, *given, use_reentrant=False) if recompute else sums_of(*given))
        return {name: torch.stack(values).sum() for name, values in zip(names, zip(*parts, strict=True), strict=True)}

    def _sum(
        self, name: str, student: torch.Tensor, labels: torch.Tensor, teacher: torch.Tensor | None
    ) -> torch.Tensor:
        needs_teacher = LOSS_FIELDS[name].needs_teacher
        assert teacher is not None or not needs_teacher, name
        other = teacher if needs_teacher else labels
        values = LOSS_TERMS[name].function(student, other, **self.options.get(name, {}))
        if values.ndim == 2:
            values = values.mean(1)
        return (values if needs_teacher else values.masked_fill(labels == IGNORED, 0)).sum()


class _OfLogits(torch.autograd.Function):
    """A loss per row of logits with an analytic gradient, which is stored in the logits' precision.

    Autograd would store and pass over several fp32 tensors of (n, v). Here they exist for a few rows at a time.
    """

    @staticmethod
    def by_rows(
        ctx: Any, logits: torch.Tensor, loss: Callable[..., _ValueAndGradient], *given: torch.Tensor
    ) -> torch.Tensor:
        """The losses of all rows, (n,), by `loss` of some rows of the fp32 logits and of each tensor `given`."""
        values = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
        gradient = torch.empty_like(logits)
        for rows in _in_cache(logits):
            values[rows], gradient[rows] = loss(logits[rows].float(), *(each[rows] for each in given))
        ctx.save_for_backward(gradient)
        return values

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        for rows in _in_cache(gradient):  # in place, since a graph is backpropagated once
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


def _in_cache(logits: torch.Tensor) -> Iterator[slice]:
    """Rows of (n, v), as many at a time as `LOGITS_IN_CACHE` allows."""
    yield from _chunks(len(logits), max(1, LOGITS_IN_CACHE // logits.shape[1]))


def _chunks(total: int, size: int) -> Iterator[slice]:
    """Slices that cover `total` items; one empty slice for none."""
    for start in range(0, max(1, total), size):
        yield slice(start, min(total, start + size))
