"""Losses against numbers worked out by hand, and their corner cases."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from raysearch.recovery import losses
from raysearch.recovery.losses import LossTerms, cross_entropy, hidden_match, kl_divergence


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
@pytest.mark.parametrize("kept_bytes", [0, 10**9])
def test_chunks_change_nothing(kept_bytes: int, num_tokens: int, at_a_time: int, in_cache: int, seed: int) -> None:
    """Sums and gradients are the same however few logits are made at a time, kept or made again, none included."""
    generator = torch.Generator().manual_seed(seed)
    vocabulary, width = 11, 5
    head = torch.nn.Linear(width, vocabulary)
    states = torch.randn(num_tokens, width, generator=generator)
    targets = torch.randn(num_tokens, width, generator=generator)
    labels = torch.randint(vocabulary, (num_tokens,), generator=generator)
    labels[::5] = losses.IGNORED
    terms = LossTerms({"sft": 1.0, "logits_kd": 0.3, "hidden_kd": 2.0})
    small = {
        "LOGITS_AT_A_TIME": at_a_time * vocabulary,
        "LOGITS_IN_CACHE": in_cache * vocabulary,
        "KEPT_BYTES": kept_bytes,
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


def test_terms_follow_the_weights() -> None:
    from tests.support.recovery_setup import recipe

    terms = LossTerms.of(recipe(sft=0, logits_kd=0.0, hidden_kd=1.5, hidden_match="cosine"))
    assert terms.weights == {"hidden_kd": 1.5}
    assert terms.hidden == "cosine"
    assert terms.need_teacher
    assert not terms.need_logits
    assert not LossTerms.of(recipe(logits_kd=0, hidden_kd=0)).need_teacher
