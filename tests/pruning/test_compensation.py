"""Linear compensation: the least-squares optimum, in stock weights, for every family whose FFN is added as it is."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raysearch.errors import InputError
from raysearch.models import family_for
from raysearch.models.pruned_config import fixed_layers
from raysearch.pruning import compensate, compensation
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.pruning.slicing import full_units, slice_model
from tests.support.tiny_models import FAMILIES, NUM_LAYERS, dense


def state_before(model, batch: dict, module: torch.nn.Module) -> torch.Tensor:
    """What a module reads at tokens that are no padding."""
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    return seen[0][batch["attention_mask"].bool()]


def test_it_is_the_least_squares_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers 1 and 2 of 4 are dropped; 37 tokens, 24 channels, next to no ridge."""
    monkeypatch.setattr(compensation, "RIDGE", 1e-9)
    config: LlamaConfig = FAMILIES["llama"].config()
    config.intermediate_size = 24
    torch.manual_seed(0)
    model, batch = LlamaForCausalLM(config).double().eval(), FAMILIES["llama"].batch()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    pruned = slice_model(model, [0, 3], full_units(model))
    wanted, before = (
        state_before(model, batch, model.model.layers[3]),
        state_before(pruned, batch, pruned.model.layers[1]),
    )
    untouched = {name: value.clone() for name, value in pruned.state_dict().items()}
    (left,) = compensate(pruned, model, [0, 3], [batch])
    after = state_before(pruned, batch, pruned.model.layers[1])
    channels = state_before(pruned, batch, pruned.model.layers[0].mlp.down_proj)
    assert left == pytest.approx(float((wanted - after).square().sum() / (wanted - before).square().sum()), abs=1e-6)
    assert left < 0.9
    normal = channels.T @ (wanted - after)  # zero at the optimum
    assert normal.abs().max() < 1e-6 * (channels.T @ (wanted - before)).abs().max()
    changed = [name for name, value in pruned.state_dict().items() if not torch.equal(value, untouched[name])]
    assert changed == ["model.layers.0.mlp.down_proj.weight"]


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_comes_nearer_or_says_why_not(name: str) -> None:
    model, batch = dense(name), FAMILIES[name].batch()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    kept = [*(fixed_layers(model.config) or [0]), NUM_LAYERS - 1]
    pruned = slice_model(model, kept, full_units(model))
    if not FAMILIES[name].adds_ffn_output:
        with pytest.raises(InputError, match="norms or scales the FFN's output"):
            compensate(pruned, model, kept, [batch])
        return
    norms = [family_for(each).final_norm(each) for each in (model, pruned)]
    wanted, plain = state_before(model, batch, norms[0]), state_before(pruned, batch, norms[1])
    (left,) = compensate(pruned, model, kept, [batch])
    assert left < 0.7
    assert (state_before(pruned, batch, norms[1]) - wanted).norm() < (plain - wanted).norm()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_no_dropped_layers_or_none_before_them_change_nothing() -> None:
    model, batch = dense("llama"), FAMILIES["llama"].batch()
    for kept in ([0, 1, 2, 3], [2, 3]):
        pruned = slice_model(model, kept, full_units(model))
        before = copy.deepcopy(pruned.state_dict())
        assert compensate(pruned, model, kept, [batch]) == []
        assert all(torch.equal(value, before[key]) for key, value in pruned.state_dict().items())


def test_a_pruned_checkpoint_can_be_compensated(tmp_path: Path) -> None:
    done = prune_checkpoint(
        "pocket", mode="layerwise", ratio=0.3, to=tmp_path, calibration="pocket", compensate=True, num_samples=16
    )
    assert all(left < 0.8 for left in done["left_by_compensation"])
    assert len(done["left_by_compensation"]) >= 1


def test_compensation_needs_data_and_dropped_layers(tmp_path: Path) -> None:
    for mode, message in (("layerwise", "compensate: needs calibration data"), ("widthwise", "drops none")):
        with pytest.raises(InputError, match=message):
            prune_checkpoint("pocket", mode=mode, ratio=0.3, to=tmp_path / "out", compensate=True)
    assert list(tmp_path.iterdir()) == []
