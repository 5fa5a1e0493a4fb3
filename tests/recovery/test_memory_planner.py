"""Memory plans against sums done by hand."""

import pytest
import torch

from raysearch.config.settings import RecoverySettings
from raysearch.errors import InputError
from raysearch.recovery.memory_planner import GIB, USABLE, MemoryPlan, MemoryRequirements, needs_of, plan_memory
from raysearch.recovery.trainable_params import choose_trained
from tests.support.recovery_setup import recipe, tiny_family, tiny_model

LLAVA = MemoryRequirements(
    num_params=7_063_000_000,
    num_trained=6_760_000_000,
    bytes_per_param=2,
    num_layers=32,
    hidden=4096,
    layer_width=8 * 4096 + 7 * 4096 + 4 * 11008,
    vocabulary=32064,
)


def _plan(gib: float, workers: int, needs: MemoryRequirements = LLAVA, **settings: object) -> MemoryPlan:
    chosen = RecoverySettings(**({"batch_size": 16, "max_length": 1024} | settings))
    return plan_memory(needs, chosen, int(gib * GIB), workers)


def test_state_bytes_by_hand() -> None:
    """Mixed-precision Adam: 2 + 2 + 12 bytes per trained parameter, sharded stage by stage."""
    needs = MemoryRequirements(1000, 800, 2, 4, 8, 100, 0)
    assert needs.state_bytes(0, 4) == 2000 + 1600 + 9600
    assert needs.state_bytes(1, 4) == 2000 + 1600 + 2400
    assert needs.state_bytes(2, 4) == 2000 + (1600 + 3200) // 4 + 2400
    assert needs.state_bytes(3, 4) == 500 + 2 * 500 + 1200 + 2400


def test_the_lowest_stage_that_fits() -> None:
    assert _plan(2000, 1).zero_stage == 1
    assert _plan(2000, 1).tokens_per_pass is None
    assert _plan(80, 8).zero_stage == 1
    assert _plan(30, 8).zero_stage == 3


def test_passes_shrink_before_it_is_given_up() -> None:
    plan = _plan(165, 1, batch_size=64, max_length=2048)
    assert plan.zero_stage == 2
    assert plan.tokens_per_pass is not None
    assert 2048 <= plan.tokens_per_pass < 64 * 2048
    assert plan.estimated_bytes <= USABLE * 165 * GIB
    with pytest.raises(InputError, match=r"needs about .* GiB a worker and 40\.0 GiB are free"):
        _plan(40, 1)


@pytest.mark.parametrize("gib", [80, 100, 150, 200, 400])
@pytest.mark.parametrize("workers", [2, 4, 8])
def test_plans_keep_within_the_memory(gib: float, workers: int) -> None:
    plan = _plan(gib, workers, batch_size=64)
    assert plan.estimated_bytes <= USABLE * gib * GIB
    assert "GiB a worker" in plan.describe()


def test_what_is_named_is_kept() -> None:
    plan = _plan(2000, 2, zero_stage=3, gradient_checkpointing=True)
    assert (plan.zero_stage, plan.checkpointing) == (3, True)


def test_offloading_comes_last_and_only_into_memory_that_is_there() -> None:
    """One 80 GiB GPU can't hold 7B in full (12 bytes a parameter of optimizer state); 16 bytes go to the machine."""
    settings = RecoverySettings(batch_size=16, max_length=1024)
    plan = plan_memory(LLAVA, settings, 80 * GIB, 1, host_bytes=200 * GIB)
    assert plan.offload
    assert "machine's memory" in plan.describe()
    with pytest.raises(InputError):
        plan_memory(LLAVA, settings, 80 * GIB, 1, host_bytes=100 * GIB)
    assert not plan_memory(LLAVA, settings, 400 * GIB, 1, host_bytes=200 * GIB).offload
    named = RecoverySettings(batch_size=16, max_length=1024, offload="cpu")
    assert plan_memory(LLAVA, named, 400 * GIB, 1, host_bytes=200 * GIB).offload


def test_named_tokens_per_pass_are_kept() -> None:
    assert _plan(2000, 1, tokens_per_pass=2048).tokens_per_pass == 2048
    assert _plan(2000, 1, tokens_per_pass=2048).zero_stage == 2, "which adds gradients up in fp32"
    assert _plan(2000, 1, tokens_per_pass=10**6).tokens_per_pass is None


def test_needs_of_a_model() -> None:
    model = tiny_model()
    trained = choose_trained(model, tiny_family(), recipe(trained="projector"))
    needs = needs_of(model, tiny_family(), trained, torch.bfloat16, need_logits=True)
    assert needs.num_params == model.num_parameters()
    assert needs.num_trained == sum(p.numel() for p in model.model.multi_modal_projector.parameters())
    assert (needs.num_layers, needs.hidden, needs.bytes_per_param) == (2, 32, 2)
    assert needs.layer_width == 8 * 32 + 7 * 32 + 4 * 48
