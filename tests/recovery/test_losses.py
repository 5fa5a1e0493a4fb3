"""Losses: a contract that every row of `LOSS_TERMS` must pass, numbers worked out by hand, and corner cases."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.config.recipe import LOSS_FIELDS
from raysearch.config.settings import RecoverySettings
from raysearch.recovery import losses
from raysearch.recovery.losses import (
    LOSS_TERMS,
    LossTerm,
    RecoveryLoss,
    cross_entropy,
    hidden_match,
    kl_divergence,
    loss_table,
)
from raysearch.recovery.trainer import RecoveryTrainer
from tests.support.recovery_setup import recipe, samples, shared_teacher, tiny_encoder, tiny_family, tiny_model

N, STATES, WIDTH, VOCABULARY = 6, 2, 8, 11
LABELS = torch.tensor([3, losses.IGNORED, 0, 10, losses.IGNORED, 5])


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor, torch.nn.Module]:
    """States of a student and of a teacher, (N, STATES, WIDTH), and a language head, drawn with one seed."""
    torch.manual_seed(0)
    student, teacher = torch.randn(2, N, STATES, WIDTH).to(dtype)
    return student, teacher, torch.nn.Linear(WIDTH, VOCABULARY).to(dtype)


def sum_of(name: str, student: torch.Tensor, teacher: torch.Tensor, head: torch.nn.Module) -> torch.Tensor:
    """One term's sum, with the options of a recipe that weighs it alone."""
    alone = RecoveryLoss.of(recipe(**weights(name)))
    sums = alone.sums(student, LABELS[: len(student)], head, teacher, head, VOCABULARY)
    assert list(sums) == [name]
    return sums[name]


def weights(name: str) -> dict[str, float]:
    """Weight 1 for one loss, 0 for the others."""
    return {other: float(other == name) for other in LOSS_FIELDS}


@pytest.mark.parametrize("name", LOSS_TERMS)
class TestEveryTerm:
    """The contract of a loss."""

    def test_a_student_that_is_the_teacher_has_nothing_to_learn_from_it(self, name: str) -> None:
        if LOSS_FIELDS[name].needs_teacher:
            student, _, head = inputs()
            assert sum_of(name, student, student, head).abs() < 1e-5

    def test_it_is_reduced_in_fp32(self, name: str) -> None:
        student, teacher, head = inputs(torch.bfloat16)
        found = sum_of(name, student, teacher, head)
        assert found.dtype == torch.float32
        assert found.ndim == 0
        wanted = sum_of(name, student.float(), teacher.float(), head.float())
        torch.testing.assert_close(found, wanted, rtol=2**-7, atol=1e-6)  # logits are rounded to bf16

    def test_the_student_gets_finite_gradients_and_the_teacher_none(self, name: str) -> None:
        student, teacher, head = inputs()
        student.requires_grad_(), teacher.requires_grad_()
        sum_of(name, student, teacher, head).backward()
        assert student.grad.isfinite().all()
        assert student.grad.abs().sum() > 0
        if LOSS_FIELDS[name].inputs == "logits":
            assert head.weight.grad.isfinite().all()
            assert teacher.grad is None

    def test_it_counts_at_answer_tokens_or_with_a_teacher_at_every_point(self, name: str) -> None:
        student, teacher, head = inputs()
        changed = student.clone()
        changed[LABELS == losses.IGNORED] += 1
        same = torch.equal(sum_of(name, student, teacher, head), sum_of(name, changed, teacher, head))
        assert same != LOSS_FIELDS[name].needs_teacher

    def test_it_is_a_sum_over_positions_and_0_without_any(self, name: str) -> None:
        student, teacher, head = inputs()
        twice = RecoveryLoss.of(recipe(**weights(name)))
        sums = twice.sums(*(torch.cat([x, x]) for x in (student, LABELS)), head, torch.cat([teacher, teacher]), head)
        torch.testing.assert_close(sums[name], 2 * sum_of(name, student, teacher, head))
        none = student[:0].requires_grad_()
        empty = sum_of(name, none, teacher[:0], head)
        empty.backward()
        assert empty == 0
        assert none.grad is not None

    def test_it_trains_alone_and_is_reported_per_position(self, name: str) -> None:
        trainer = start(epochs=4, lr=1e-2, **weights(name))
        first = trainer.train_until(16)
        assert list(first) == [name]
        trainer.train_until(140)
        assert trainer.train_until(160)[name] < first[name]
        trainer.close()

    def test_a_value_that_is_not_finite_ends_the_trial(self, name: str) -> None:
        model = tiny_model(seed=1)
        torch.nn.init.constant_(model.model.language_model.norm.weight, math.inf)
        trainer = start(model, **weights(name))
        with pytest.raises(FloatingPointError, match=rf"^{name} is (nan|inf) in the step from sample 0 to 8; lower lr"):
            trainer.train_until(8)
        trainer.close()


def start(model: torch.nn.Module | None = None, **values: float) -> RecoveryTrainer:
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    student = tiny_model(seed=1) if model is None else model
    given = (samples(), tiny_encoder(), shared_teacher(), chosen)
    return RecoveryTrainer(student, tiny_family(), recipe(**values), *given)


def test_terms_and_fields_are_the_same() -> None:
    assert set(LOSS_TERMS) == set(LOSS_FIELDS)
    rows, stranger = list(LOSS_TERMS.values()), LossTerm("entropy", cross_entropy)
    with pytest.raises(
        ValueError, match=r"{'entropy'}: no such loss in config/recipe\.py; add a field marked with LossW"
    ):
        loss_table(*rows, stranger)
    with pytest.raises(ValueError, match=r"{'sft'}: no such loss in recovery/losses\.py; add a LossTerm to LOSS_TERMS"):
        loss_table(*rows[1:])
    with pytest.raises(ValueError, match=r"{'sharpness'}: no such loss option in config/recipe\.py; add a field"):
        loss_table(*rows[1:], LossTerm("sft", cross_entropy, options={"beta": "sharpness"}))


def test_cross_entropy_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)], [math.log(4.0), 0.0]])  # p = (1/4, 3/4), (4/5, 1/5)
    expected = torch.tensor([-math.log(3 / 4), -math.log(1 / 5)])
    torch.testing.assert_close(cross_entropy(logits, torch.tensor([1, 1])), expected)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_kl_by_hand(temperature: float) -> None:
    """At temperature T, logits T log p give the distribution p."""
    student, teacher = torch.tensor([0.5, 0.25, 0.25]), torch.tensor([0.25, 0.5, 0.25])
    logits = [temperature * p.log()[None] for p in (student, teacher)]
    forward = 0.25 * math.log(0.5) + 0.5 * math.log(2)  # sum of q log(q / p)
    reverse = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    got = kl_divergence(*logits, temperature=temperature)
    torch.testing.assert_close(got, torch.tensor([forward * temperature**2]))
    got = kl_divergence(*logits, temperature=temperature, direction="reverse")
    torch.testing.assert_close(got, torch.tensor([reverse * temperature**2]))


def test_kl_directions_differ() -> None:
    student, teacher = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    forward = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    reverse = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    torch.testing.assert_close(kl_divergence(student, teacher), torch.tensor([forward]))
    torch.testing.assert_close(kl_divergence(student, teacher, direction="reverse"), torch.tensor([reverse]))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_gradient_of_kl_is_that_of_its_formula(direction: str, temperature: float) -> None:
    """Against autograd through the definition, in fp64; tokens weigh differently."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4 * torch.randn(6, 9, generator=generator) for _ in range(2))
    teacher[0, 3] = -1e30  # impossible to the teacher
    weights = torch.arange(6.0)

    def gradient(divergence: Callable[[torch.Tensor], torch.Tensor], start: torch.Tensor) -> torch.Tensor:
        logits = start.clone().requires_grad_()
        (weights.to(start.dtype) * divergence(logits)).sum().backward()
        return logits.grad

    def by_definition(logits: torch.Tensor) -> torch.Tensor:
        q, p = ((x / temperature).log_softmax(-1) for x in (logits, teacher.double()))
        one, other = (p, q) if direction == "forward" else (q, p)
        return (one.exp() * (one - other)).sum(-1) * temperature**2

    ours = lambda logits: kl_divergence(logits, teacher, temperature, direction)  # noqa: E731
    wanted = gradient(by_definition, student.double())
    if direction == "reverse":  # the first token's divergence is astronomic: the student thinks it possible
        wanted, student, teacher, weights = wanted[1:], student[1:], teacher[1:], weights[1:]
    torch.testing.assert_close(gradient(ours, student), wanted.float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        gradient(ours, student.bfloat16()).float(),
        gradient(ours, student.bfloat16().float()),
        rtol=2**-7,  # rounded when it is kept, and when a token's weight comes to it
        atol=1e-6,
    )


def test_kl_is_never_negative() -> None:
    logits = torch.randn(2000, 8, generator=torch.Generator().manual_seed(0))
    nearly = logits * (1 + 1e-7)
    for direction in ("forward", "reverse"):
        assert kl_divergence(nearly, logits, 1.0, direction).min() >= 0


def test_hidden_match_by_hand() -> None:
    student, teacher = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    # Mean squared differences 8 and 2.5, mean squares 4.5 and 2.
    torch.testing.assert_close(hidden_match(student, teacher), torch.tensor([8 / 4.5, 2.5 / 2]))
    torch.testing.assert_close(hidden_match(student, teacher, "cosine"), torch.tensor([1 - 3 / 5, 1.0]))


def test_relative_mse_is_mse_over_the_mean_square() -> None:
    student, teacher = torch.randn(1, 7), torch.randn(1, 7)
    mse = torch.nn.functional.mse_loss(student, teacher)
    torch.testing.assert_close(hidden_match(student, teacher)[0] * teacher.square().mean(), mse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_zero_when_equal(dtype: torch.dtype) -> None:
    logits, states = torch.randn(9, 50).to(dtype) * 20, torch.randn(9, 16).to(dtype)
    for direction in ("forward", "reverse"):
        assert kl_divergence(logits, logits, 2.0, direction).abs().max() == 0
    assert hidden_match(states, states).max() == 0
    assert hidden_match(states, states, "cosine").abs().max() < 1e-6


def test_bf16_inputs_are_reduced_in_fp32() -> None:
    logits, labels = torch.randn(4, 1000).bfloat16(), torch.arange(4)
    assert cross_entropy(logits, labels).dtype == torch.float32
    torch.testing.assert_close(cross_entropy(logits, labels), cross_entropy(logits.float(), labels))


def test_impossible_tokens_and_silent_states_stay_finite() -> None:
    teacher = torch.tensor([[0.0, -1e30]])
    assert torch.isfinite(kl_divergence(torch.tensor([[0.0, 0.0]]), teacher)).all()
    assert torch.isfinite(hidden_match(torch.zeros(1, 3), torch.zeros(1, 3))).all()
    assert torch.isfinite(hidden_match(torch.zeros(1, 3), torch.zeros(1, 3), "cosine")).all()


@settings(deadline=None, max_examples=25)
@given(num_tokens=st.integers(0, 40), at_a_time=st.integers(1, 50), in_cache=st.integers(1, 9), seed=st.integers(0, 99))
@pytest.mark.parametrize("gradient_bytes", [0, 10**9])
def test_chunks_change_nothing(gradient_bytes: int, num_tokens: int, at_a_time: int, in_cache: int, seed: int) -> None:
    """Sums and gradients are the same however few logits are made at a time, kept or made again, none included."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, width = 11, 5
    head = torch.nn.Linear(width, vocabulary)
    states = torch.randn(num_tokens, width, generator=generator)
    targets = torch.randn(num_tokens, width, generator=generator)
    labels = torch.randint(vocabulary, (num_tokens,), generator=generator)
    labels[::5] = losses.IGNORED
    terms = RecoveryLoss({"sft": 1.0, "logits_kd": 0.3, "hidden_kd": 2.0})
    small = {
        "LOGITS_PER_CHUNK": at_a_time * vocabulary,
        "LOGITS_IN_CACHE": in_cache * vocabulary,
        "MAX_GRADIENT_BYTES": gradient_bytes,
    }
    found = []
    for limits in (dict.fromkeys(small, 10**9), small):
        hidden = states.clone().requires_grad_()
        head.zero_grad()
        with pytest.MonkeyPatch.context() as patched:
            for name, limit in limits.items():
                patched.setattr(losses, name, limit)
            sums = terms.sums(hidden[:, None], labels, head, targets[:, None], head, vocabulary)
            terms.loss(sums, dict.fromkeys(sums, num_tokens)).backward()
        found.append((*sums.values(), hidden.grad, head.weight.grad))
    for whole, chunked in zip(*found, strict=True):
        assert torch.isfinite(chunked).all()
        torch.testing.assert_close(chunked, whole)


def test_the_gradient_of_cross_entropy_is_torchs_own() -> None:
    labels = torch.tensor([3, losses.IGNORED, 0])
    ours, theirs = (torch.randn(3, 7, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    weights = torch.tensor([1.0, 2.0, 0.5])
    ours.requires_grad_(), theirs.requires_grad_()
    found = cross_entropy(ours, labels)
    wanted = torch.nn.functional.cross_entropy(theirs, labels, reduction="none", ignore_index=losses.IGNORED)
    torch.testing.assert_close(found, wanted)
    (weights * found).sum().backward()
    (weights * wanted).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_terms_follow_the_recipe() -> None:
    loss = RecoveryLoss.of(recipe(sft=0, logits_kd=0.0, hidden_kd=1.5, hidden_match="cosine"))
    assert loss.weights == {"hidden_kd": 1.5}
    assert loss.options == {"hidden_kd": {"kind": "cosine"}}
    assert loss.names(needs_teacher=True) == loss.names("states") == ["hidden_kd"]
    assert loss.names("logits") == []
    both = RecoveryLoss.of(recipe(kl="reverse", temperature=3, hidden_kd=0))
    assert both.options == {"sft": {}, "logits_kd": {"temperature": 3.0, "direction": "reverse"}}
    assert both.names("logits") == ["sft", "logits_kd"]
    assert both.names(needs_teacher=False) == ["sft"]
