"""Budgets of a device: memory and KV cache beside sizes, several limits at once, with a name."""

import pytest

from raysearch.config.budget import Budget, Limit, Size
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.models.shape import Shape
from raysearch.study.front import Baseline, Front, FrontPoint
from tests.support import synthetic_study

DENSE = Size(1_000_000_000, 2_000_000_000, kv_bytes_per_token=100_000, activation_bytes_per_token=50_000)
SMALL = Size(500_000_000, 1_000_000_000, kv_bytes_per_token=40_000, activation_bytes_per_token=10_000)


@pytest.mark.parametrize(
    ("written", "text", "limits", "tokens", "batch"),
    [
        ("memory 3GB", "memory 3GB @ {tokens: 4096, batch: 1}", [("memory", 3e9)], 4096, 1),
        (" memory: 3 GB @ {tokens: 512}", "memory 3GB @ {tokens: 512, batch: 1}", [("memory", 3e9)], 512, 1),
        (
            "phone: memory 3GiB,kv_cache 200MB @ {batch: 2, tokens: 1000}",
            "phone: memory 3GiB, kv_cache 200MB @ {tokens: 1000, batch: 2}",
            [("memory", 3 * 2**30), ("kv_cache", 2e8)],
            1000,
            2,
        ),
        ({"name": "a", "size": "60%"}, "a: 60%", [("share", 0.6)], 4096, 1),
        (
            {"name": "phone", "memory": "3GB", "size": "3B", "tokens": 8},
            "phone: 3B, memory 3GB @ {tokens: 8, batch: 1}",
            [("params", 3e9), ("memory", 3e9)],
            8,
            1,
        ),
    ],
)
def test_forms(written, text, limits, tokens, batch):
    budget = Budget.parse(written)
    assert budget == Budget(text, tuple(Limit(*limit) for limit in limits), tokens, batch)
    assert Budget.parse(text) == budget, "the key of an answer reads back"


@pytest.mark.parametrize(
    "written",
    [
        "memory 3", "memory 3B", "memory 60%", "memory", "memory 3GB @ {tokens: 0}", "memory 3GB @ {tokens: x}",
        "memory 3GB @ {images: 1}", "memory 3GB @ tokens: 7", "60% @ {tokens: 7}", "phone:", "phone: memory 3 parsecs",
        "prefill 300ms", {"memory": "3GB", "colour": 1}, {}, {"memory": 3}, "memory 3GB, ",
        "memory 3GB @ {tokens: 7} x",
    ],
)  # fmt: skip
def test_everything_else_is_refused(written):
    with pytest.raises(InputError, match=r"^budget .*: "):
        Budget.parse(written)


def test_memory_is_weights_cache_and_activations():
    # 1 GB + 1000 tokens x 2 rows x (40,000 + 10,000) bytes
    assert Budget.parse("memory 1100MB @ {tokens: 1000, batch: 2}").admits(SMALL, DENSE)
    assert not Budget.parse("memory 1099MB @ {tokens: 1000, batch: 2}").admits(SMALL, DENSE)
    assert Budget.parse("kv_cache 80MB @ {tokens: 1000, batch: 2}").admits(SMALL, DENSE)
    assert not Budget.parse("kv_cache 79MB @ {tokens: 1000, batch: 2}").admits(SMALL, DENSE)
    assert not Budget.parse("memory 9GB, kv_cache 79MB @ {tokens: 1000, batch: 2}").admits(SMALL, DENSE)
    assert not Budget.parse("40%, memory 9GB").admits(SMALL, DENSE)


def test_the_tightest_limit_is_its_place_on_the_axis_of_sizes():
    budget = Budget.parse("75%, kv_cache 50MB @ {tokens: 1000}")  # the dense model's is 100 MB
    assert budget.size_ratio(DENSE) == 0.5
    assert budget.bound_bytes(DENSE) == 1e9
    assert budget.costs_text(SMALL, DENSE) == "1 GB (50.0% of the dense model), kv_cache 40 MB"


def test_figures_that_a_study_lacks_are_one_line():
    with pytest.raises(InputError, match="version without figures on memory"):
        Budget.parse("memory 3GB").admits(Size(1, 2), DENSE)


def test_a_front_answers_and_names_the_nearest(tmp_path):
    def point(key, size, retention):
        return FrontPoint(
            key=key, recipe={"mode": "layerwise", "ratio": 0.5, "criterion": "deepest"}, size_ratio=0.5,
            retention=retention, retention_ci=(retention, retention), scores={}, samples_seen=1, **vars(size),
        )  # fmt: skip

    larger = Size(600_000_000, 1_200_000_000, kv_bytes_per_token=90_000, activation_bytes_per_token=10_000)
    points = [point("a" * 10, SMALL, 0.8), point("b" * 10, larger, 0.9)]
    front = Front.build(
        "s", "m", Baseline(**vars(DENSE), scores={}), points, [Budget.parse("phone: kv_cache 50MB @ {tokens: 1000}")]
    )
    assert front.budgets == {"phone: kv_cache 50MB @ {tokens: 1000, batch: 1}": "a" * 10}
    front.save(tmp_path)
    assert Front.load(tmp_path) == front
    with pytest.raises(InputError, match=r"takes 1 GB \(50.0% of the dense model\), memory 1.2 GB; raise"):
        front.answer(Budget.parse("memory 1GB"), tmp_path)


def test_a_space_has_them_as_mappings():
    budgets = [{"name": "phone", "memory": "3GB", "kv_cache": "200MB"}, "60%"]
    space = SearchSpace.load(synthetic_study.POCKET).model_copy()
    checked = SearchSpace.model_validate({**space.model_dump(mode="json"), "budgets": budgets})
    assert checked.budgets == ["phone: memory 3GB, kv_cache 200MB @ {tokens: 4096, batch: 1}", "60%"]


def test_the_kv_cache_of_a_shape():
    from raysearch.models.param_count_cache import counts_of_model

    counts = counts_of_model("pocket")
    size = counts.size(Shape(5, 2, 4, 100))
    assert size.kv_bytes_per_token == 2 * 5 * 2 * 16 * 2
    assert size.activation_bytes_per_token == 2 * max(3 * 100 + 4 * 160, 7 * 160)
