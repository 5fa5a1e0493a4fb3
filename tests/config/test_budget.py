"""Budgets as people write them."""

import pytest

from raysearch.config.budget import Budget, Size, rate_text
from raysearch.errors import InputError

DENSE = Size(num_params=1_000_000_000, size_bytes=2_000_000_000)


@pytest.mark.parametrize(
    ("text", "bound_bytes"),
    [
        ("60%", 1.2e9),
        (" 60 %", 1.2e9),
        ("1.5GB", 1.5e9),
        ("900MB", 9e8),
        ("1GiB", 2**30),
        ("0.6B", 1.2e9),
        ("600M", 1.2e9),
        ("100%", 2e9),
    ],
)
def test_forms(text, bound_bytes):
    budget = Budget.parse(text)
    assert budget.bound_bytes(DENSE) == pytest.approx(bound_bytes)
    assert budget.text == text.replace(" ", "")


def test_a_budget_admits_up_to_its_bound():
    assert Budget.parse("0.6B").admits(Size(600_000_000, 10**12), DENSE)
    assert not Budget.parse("0.6B").admits(Size(600_000_001, 1), DENSE)
    assert Budget.parse("60%").admits(Size(1, 1_200_000_000), DENSE)
    assert not Budget.parse("60%").admits(Size(1, 1_200_000_001), DENSE)


@pytest.mark.parametrize("text", ["", "12", "-5%", "0%", "120%", "3.2 gigabytes", "nan%", "1e999GB", "3TB", "%", "GB"])
def test_everything_else_is_refused_with_the_forms(text):
    with pytest.raises(InputError, match=r"budget .*: "):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("rate", "text"), [(1068.7, "1,069 tokens/s"), (99.94, "99.9 tokens/s"), (0.1234, "0.123 tokens/s")]
)
def test_rates_as_people_read_them(rate, text):
    assert rate_text(rate) == text
