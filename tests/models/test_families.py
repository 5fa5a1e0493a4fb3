"""The contract: what pruning promises, for every family x mode x criterion, on tiny models with random weights."""

import copy
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.config.criteria import LAYER_CRITERIA, WIDTH_CRITERIA, needs_data
from raysearch.errors import InputError
from raysearch.export.save_checkpoint import save_checkpoint
from raysearch.models import decoder_layout, family_for, load
from raysearch.models.known_families import KNOWN_FAMILIES
from raysearch.models.layout import Layout, Units
from raysearch.models.param_count import counts_of
from raysearch.models.pruned_config import fixed_layers, shape_of
from raysearch.models.shape import Shape
from raysearch.models.shape_solver import shape_for_ratio
from raysearch.pruning import prune
from raysearch.pruning.importance import importance
from raysearch.pruning.slicing import full_units, slice_model
from tests.support.tiny_models import FAMILIES, NUM_LAYERS, SEQUENCE, dense

MODES = ("layerwise", "widthwise", "both")
every_family = pytest.mark.parametrize("name", list(FAMILIES))


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    return family_for(model).decoder(model).layers


def logits(model: PreTrainedModel, batch: dict) -> torch.Tensor:
    with torch.inference_mode():
        return model(**{name: value for name, value in batch.items() if name != "labels"}).logits


def num_params(model: PreTrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def narrower(model: PreTrainedModel) -> Shape:
    """Fewer channels, and fewer heads where the stock class holds them: a count that divides nothing if there is one,
    with fewer query heads per group if there are several."""
    counts, full = counts_of(model.config), shape_of(model.config)
    choices = [
        pair for pair in counts.attention_choices if pair != (full.num_kv_heads, full.num_heads)
    ] or counts.attention_choices
    odd = [pair for pair in choices if model.config.get_text_config().hidden_size % pair[1]]
    kv_heads, heads = (odd or choices)[0]
    return replace(full, num_kv_heads=kv_heads, num_heads=heads, num_ffn_channels=61)


def random_units(model: PreTrainedModel, shape: Shape, seed: int = 0) -> dict[int, Units]:
    """Other units in each layer."""
    rng, shapes = np.random.default_rng(seed), decoder_layout(model)[0]
    units = {}
    for i in range(len(layers_of(model))):
        groups = np.sort(rng.choice(shapes.num_kv_groups, shape.num_kv_heads, replace=False))
        per_group = shape.num_heads // shape.num_kv_heads
        heads = [
            g * shapes.heads_per_group + np.sort(rng.choice(shapes.heads_per_group, per_group, replace=False))
            for g in groups
        ]
        channels = np.sort(rng.choice(shapes.num_ffn_channels, shape.num_ffn_channels, replace=False))
        units[i] = dict(shapes.all_units()) | {
            "kv_groups": groups,
            "heads": np.concatenate(heads),
            "ffn_channels": channels,
        }
    return units


def test_every_known_family_is_under_test() -> None:
    assert KNOWN_FAMILIES.keys() <= {family.config().model_type for family in FAMILIES.values()}


@every_family
@pytest.mark.parametrize("mode", MODES)
def test_predicted_size_is_the_built_size(name: str, mode: str) -> None:
    model = dense(name)
    scores = importance(model, None, "random", seed=1)
    assert counts_of(model.config).size().num_params == num_params(model)
    for ratio in (0.0, 0.2, 0.45):
        shape = shape_for_ratio(counts_of(model.config), mode, ratio)
        pruned = prune(model, shape, {"depth": scores, "width": scores})
        size = counts_of(model.config).size(shape, 4)
        assert size.num_params == num_params(pruned)
        assert size == counts_of(pruned.config).size(None, 4)
        assert shape_of(pruned.config) == shape
        if ratio == 0:
            batch = FAMILIES[name].batch()
            assert torch.equal(logits(pruned, batch), logits(model, batch))


@every_family
def test_deleting_units_equals_masking_them(name: str) -> None:
    model, batch = dense(name), FAMILIES[name].batch()
    shape = narrower(model)
    units = random_units(model, shape)
    pruned = slice_model(model, range(NUM_LAYERS), units)
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for i, (layer, shapes) in enumerate(zip(layers_of(masked), decoder_layout(model), strict=True)):
            for kind, name, size in shapes.outputs:  # the output weights alone
                columns = layer.get_submodule(name).weight.unflatten(1, (-1, size))
                columns[:, np.setdiff1d(np.arange(columns.shape[1]), units[i][kind])] = 0
    assert shape_of(pruned.config) == shape != shape_of(model.config)
    torch.testing.assert_close(logits(pruned, batch), logits(masked, batch), atol=1e-5, rtol=1e-5)
    assert (logits(pruned, batch) - logits(model, batch)).abs().max() > 1e-2


@every_family
def test_dropping_layers_equals_skipping_them(name: str) -> None:
    model, batch = dense(name), FAMILIES[name].batch()
    fixed = fixed_layers(model.config)
    kept = [i for i in range(NUM_LAYERS) if i in fixed or i % 2 == 1]
    pruned = slice_model(model, kept, full_units(model))
    skipped = copy.deepcopy(model)
    for i, layer in enumerate(layers_of(skipped)):
        if i not in kept:
            layer.forward = lambda hidden_states, *args, **kwargs: hidden_states
    for place, layer in enumerate(layers_of(pruned)):
        assert {module.layer_idx for module in layer.modules() if hasattr(module, "layer_idx")} == {place}
    torch.testing.assert_close(logits(pruned, batch), logits(skipped, batch), atol=1e-5, rtol=1e-5)
    assert (logits(pruned, batch) - logits(model, batch)).abs().max() > 1e-2


@every_family
@pytest.mark.parametrize("criterion", [c for c in WIDTH_CRITERIA if c != "random"])
def test_units_with_zero_weights_go_first_and_change_nothing(name: str, criterion: str) -> None:
    model, batch = FAMILIES[name].model(seed=2), FAMILIES[name].batch()
    full, shapes, rng = shape_of(model.config), decoder_layout(model)[0], np.random.default_rng(3)
    choices = {kv for kv, heads in counts_of(model.config).attention_choices if heads == kv * shapes.heads_per_group}
    num_groups = sorted(choices)[-2] if len(choices) > 1 else full.num_kv_heads
    shape = Shape(NUM_LAYERS, num_groups, num_groups * shapes.heads_per_group, 75)
    for layer, own in zip(layers_of(model), decoder_layout(model), strict=True):
        _zero(layer, own, "kv_groups", rng.permutation(shapes.num_kv_groups)[shape.num_kv_heads :])
        _zero(layer, own, "ffn_channels", rng.permutation(shapes.num_ffn_channels)[shape.num_ffn_channels :])
    scores = importance(model, [batch], criterion)
    pruned = prune(model, shape, {"width": scores})
    torch.testing.assert_close(logits(pruned, batch), logits(model, batch), atol=1e-5, rtol=1e-5)


def _zero(layer: nn.Module, shapes: Layout, kind: str, gone: np.ndarray) -> None:
    heads = (gone[:, None] * shapes.heads_per_group + np.arange(shapes.heads_per_group)).reshape(-1)
    for name, parameter in layer.named_parameters():
        for part in shapes.slices_of(name):
            units = heads if kind == "kv_groups" and part.kind == "heads" else gone if part.kind == kind else []
            for unit in units:
                parameter.data.narrow(part.axis, part.start + unit * part.size, part.size).zero_()


@every_family
@pytest.mark.parametrize("criterion", LAYER_CRITERIA)
def test_layers_are_ranked_and_an_idle_layer_is_seen(name: str, criterion: str) -> None:
    model, batch = FAMILIES[name].model(seed=4), FAMILIES[name].batch()
    shapes = decoder_layout(model)[2]
    for output in (shapes.attention_out, shapes.ffn_out):
        for parameter in layers_of(model)[2].get_submodule(output).parameters():
            parameter.data.zero_()
    scores = importance(model, [batch] if needs_data(criterion) else None, criterion, seed=5)
    assert scores.layers is not None
    assert scores.layers.shape == (NUM_LAYERS,)
    if criterion in ("block_influence", "angular", "one_shot_loss"):
        assert scores.layers[2] == pytest.approx(0, abs=1e-3)
    if criterion in ("block_influence", "angular"):
        full = shape_of(model.config)
        pruned = prune(model, Shape(NUM_LAYERS - 1, *full.widths), {"depth": scores})
        torch.testing.assert_close(logits(pruned, batch), logits(model, batch), atol=1e-5, rtol=1e-5)


def smaller(model: PreTrainedModel) -> PreTrainedModel:
    """One layer less, and narrower."""
    scores = importance(model, None, "random", seed=6)
    shape = Shape(NUM_LAYERS - 1, *narrower(model).widths)
    return prune(model, shape, {"depth": scores, "width": scores})


@every_family
def test_round_trip_through_a_folder(name: str, tmp_path) -> None:
    pruned = smaller(dense(name))
    save_checkpoint(pruned, None, tmp_path / "out", card={"base_model": name})
    loaded, processor = load(tmp_path / "out")
    batch = FAMILIES[name].batch(padded=False)
    assert processor is None
    assert type(loaded) is type(pruned)
    assert torch.equal(logits(loaded, batch), logits(pruned, batch))


WITHOUT_RAYSEARCH = """
import sys, pathlib, torch, transformers
for folder in pathlib.Path(sys.argv[1]).iterdir():
    inputs = torch.load(folder / "inputs.pt")
    auto = getattr(transformers, "AutoModelFor" + ("CausalLM" if len(inputs) == 2 else "ImageTextToText"))
    model = auto.from_pretrained(folder, dtype="auto").eval()
    settings = dict(min_new_tokens=4, max_new_tokens=4, do_sample=False, pad_token_id=0, suppress_tokens=[90, 91])
    with torch.inference_mode():
        found = {"logits": model(**inputs).logits}
        for cache in (True, False):
            found[f"cache {cache}"] = model.generate(**inputs, **settings, use_cache=cache)
    torch.save(found, folder / "found.pt")
assert "raysearch" not in sys.modules
"""


def test_a_process_without_raysearch_loads_and_generates(tmp_path) -> None:
    """Every family in one process; equal logits, and the same tokens with the cache and without."""
    expected = {}
    for name, family in FAMILIES.items():
        pruned, batch = smaller(dense(name)), family.batch(padded=False)
        save_checkpoint(pruned, None, tmp_path / name)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        torch.save(inputs, tmp_path / name / "inputs.pt")
        expected[name] = logits(pruned, batch)
    command = [sys.executable, "-I", "-c", WITHOUT_RAYSEARCH, str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    for name in FAMILIES:
        found = torch.load(tmp_path / name / "found.pt")
        assert torch.equal(found["logits"], expected[name]), name
        assert found["cache True"].shape == (2, SEQUENCE + 4), name
        assert torch.equal(found["cache True"], found["cache False"]), name


@every_family
def test_saved_bytes_are_the_predicted_bytes(name: str, tmp_path) -> None:
    model = dense(name)
    model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    header = int.from_bytes(file.read_bytes()[:8], "little") + 8
    assert counts_of(model.config).size(None, 4).size_bytes == file.stat().st_size - header


@every_family
def test_parts_are_found_once_each(name: str) -> None:
    model = dense(name)
    family = family_for(model)
    parts = {"decoder": [family.decoder(model)], "vision": family.vision(model), "projector": family.projector(model)}
    ids = {part: {id(p) for module in modules for p in module.parameters()} for part, modules in parts.items()}
    assert all(ids.values()) == family.is_multimodal
    assert not ids["decoder"] & ids["vision"]
    assert not ids["decoder"] & ids["projector"]
    assert not ids["vision"] & ids["projector"]
    assert family_for(model.config) == family


@pytest.mark.parametrize("name", [name for name in FAMILIES if FAMILIES[name].num_image_tokens])
def test_a_batch_without_images_is_refused(name: str) -> None:
    batch = {k: v for k, v in FAMILIES[name].batch().items() if not k.startswith("pixel_values")}
    with pytest.raises(InputError, match="no images"):
        importance(dense(name), [batch], "activation")
