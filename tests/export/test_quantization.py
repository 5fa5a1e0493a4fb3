"""Quantised decoders: counted to the byte in advance, scored as they are exported, read by transformers alone."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from raysearch.cli.app import app
from raysearch.config import quantization
from raysearch.config.quantization import stored_bytes
from raysearch.config.recipe import Recipe
from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.export.export_checkpoint import load_in_clean_process
from raysearch.export.packed import dequantize, fake_quantized, linear_layers, quantize
from raysearch.export.save_checkpoint import save_checkpoint
from raysearch.models import family_for, load
from raysearch.models.param_count import counts_of
from raysearch.models.shape import Shape
from raysearch.models.shape_solver import shape_for_ratio
from raysearch.pruning import prune
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.pruning.importance import importance
from raysearch.recovery.trainable_params import choose_trained, merged
from raysearch.searching.searcher import Searcher
from raysearch.study.plan import plan_study
from raysearch.trials.context import TrialContext
from raysearch.trials.trial import Trial
from tests.support.recovery_setup import tiny_family, tiny_model
from tests.support.tiny_models import FAMILIES, dense

BOTH = pytest.mark.parametrize("how", list(quantization.NUM_BITS))


def recipe(how="int4", **fields):
    given = {"mode": "layerwise", "ratio": 0.3, "criterion": "block_influence"} | fields
    return Recipe(**given, quantization=how)


def pruned_oddly(name):
    """A model with fewer layers and heads, and an odd number of channels, which no group of 32 divides."""
    model = dense(name)
    near = shape_for_ratio(counts_of(model.config), "both", 0.4)
    shape = Shape(near.num_layers, near.num_kv_heads, near.num_heads, near.num_ffn_channels // 2 * 2 - 1)
    scores = importance(model, None, "random")
    return prune(model, shape, {"depth": scores, "width": scores}), shape


def tensors_of(folder):
    """All tensors of a folder's files, by name."""
    return {name: t for path in folder.glob("*.safetensors") for name, t in load_file(path).items()}


def test_bytes_of_a_layer_by_hand():
    # 3 outputs of 64 inputs: 32 bytes of values and two scales each; the shape takes 16 bytes.
    assert stored_bytes("int4", 3, 64) == 3 * (32 + 2 * 2) + 16
    assert stored_bytes("int4", 3, 64, bytes_per_scale=4) == 3 * (32 + 2 * 4) + 16
    assert stored_bytes("int8", 3, 64) == 3 * (64 + 2) + 16
    # 33 inputs: no groups of 32, so one scale; 132 bits fill 5 words of 32, 264 fill 9.
    assert stored_bytes("int4", 3, 33) == 3 * (20 + 2) + 16
    assert stored_bytes("int8", 3, 33) == 3 * (36 + 2) + 16


@BOTH
@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_count_is_the_file_to_the_byte(name, how, tmp_path):
    model, shape = pruned_oddly(name)
    save_checkpoint(model, None, tmp_path / "out", recipe=recipe(how))
    counted, plain = (counts_of(dense(name).config).size(shape, model.dtype.itemsize, q) for q in (how, "none"))
    assert sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values()) == counted.size_bytes
    assert counted.num_params == plain.num_params == sum(p.numel() for p in model.parameters())
    assert counted.size_bytes < plain.size_bytes


@BOTH
@pytest.mark.parametrize("name", ["bunny", "mini_internvl", "llava_onevision", "qwen3_vl", "gemma3", "llama"])
def test_what_is_scored_is_what_transformers_loads(name, how, tmp_path):
    """Biases, fused weights, tied embeddings; an odd number of channels in all of them."""
    model, _ = pruned_oddly(name)
    before = copy.deepcopy(model.state_dict())
    save_checkpoint(model, None, tmp_path / "out", recipe=recipe(how))
    auto = AutoModelForImageTextToText if family_for(model).is_multimodal else AutoModelForCausalLM
    loaded = auto.from_pretrained(tmp_path / "out", dtype="auto")
    batch = FAMILIES[name].batch()
    with torch.no_grad():
        with fake_quantized(model, how, model.dtype):
            scored = model(**batch).logits
        assert torch.equal(loaded(**batch).logits, scored)
        assert not torch.equal(model(**batch).logits, scored)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert not hasattr(model.config, "quantization_config")


def test_weights_that_the_bits_hold_stay_exactly_as_they_are():
    row = torch.arange(-8, 8).repeat(2)  # 32 inputs, every value of 4 bits twice
    weight = torch.stack([row * 0.25, row * -0.25, torch.zeros(32), row.float()]).to(torch.bfloat16)
    numbers, scales = quantize(weight, "int4")
    # The second row's largest is 8 of the smallest one's 7: its scale is 2 / 7, and it is rounded.
    assert scales.float().flatten().tolist() == pytest.approx([0.25, 2 / 7, 1, 1], rel=2**-8)
    for exact in (0, 2, 3):
        assert torch.equal(dequantize(numbers, scales)[exact], weight[exact])
    assert numbers[0].tolist() == row.tolist()
    eights = torch.tensor([[-128.0, 127.0, 3.0], [0.5, -1.0, 63.5]])  # 63.5 / 127 = 0.5
    numbers, scales = quantize(eights, "int8")
    assert numbers.tolist() == [[-128, 127, 3], [1, -2, 127]]
    assert scales.tolist() == [[1.0], [0.5]]
    assert torch.equal(dequantize(numbers, scales), eights)


@BOTH
@pytest.mark.parametrize("inputs", [32, 33, 96])
def test_no_weight_moves_by_more_than_half_a_scale(how, inputs):
    weight = torch.randn(16, inputs, generator=torch.Generator().manual_seed(0))
    numbers, scales = quantize(weight, how)
    error = (dequantize(numbers, scales) - weight).abs().unflatten(1, (scales.shape[1], -1))
    assert (error.amax(2) <= scales * (0.5 + 1e-6)).all()
    assert scales.shape[1] == (inputs // 32 if how == "int4" and inputs % 32 == 0 else 1)


def test_training_goes_on_with_the_weights_of_before():
    """Adapters are merged below the rounding, and a failed evaluation leaves nothing behind."""
    model, family = tiny_model(), tiny_family()
    choose_trained(model, family, recipe(trained="projector+lora"))
    for name, param in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(param, std=0.1)
    before = copy.deepcopy(model.state_dict())
    with merged(model):
        whole = {name: layer.weight.clone() for name, layer in linear_layers(model).items()}

        def fail():
            with fake_quantized(model, "int4", model.dtype):
                for name, layer in linear_layers(model).items():
                    assert torch.equal(layer.weight, dequantize(*quantize(whole[name], "int4")))
                    assert not torch.equal(layer.weight, whole[name])
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        assert all(torch.equal(layer.weight, whole[name]) for name, layer in linear_layers(model).items())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert len(whole) == 2 * 7


def test_a_process_with_transformers_alone_answers(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        app(["prune", "pocket", "--ratio", "0", "--quantization", "int4", "--to", str(tmp_path / "small")])
    assert ended.value.code == 0
    model, _ = load("pocket")
    counted = counts_of(model.config).size(None, model.dtype.itemsize, "int4")
    assert (
        f"{counted.size_bytes / counts_of(model.config).size().size_bytes:.1%} of the dense model"
        in capsys.readouterr().out
    )
    assert sum(tensor.nbytes for tensor in tensors_of(tmp_path / "small").values()) == counted.size_bytes
    assert load_in_clean_process(tmp_path / "small") == (counted.num_params, None)
    assert counted.num_params == model.num_parameters()
    assert "pip install compressed-tensors" in (tmp_path / "small" / "README.md").read_text()
    with pytest.raises(InputError, match="weights are quantised; give the folder"):
        load(tmp_path / "small")


@pytest.fixture(scope="module")
def context():
    content = {
        "name": "quantised",
        "model": "pocket",
        "num_samples": 8,
        "benchmarks": ["digits"],
        "recipe": {"mode": "layerwise", "ratio": 0.0, "criterion": "deepest", "trained": "nothing"},
        "recovery": {"max_length": 256, "zero_stage": 1},
    }
    return TrialContext(SearchSpace.model_validate(content))


@pytest.mark.parametrize("trained", ["nothing", "projector+lora"])
def test_the_score_of_a_trial_is_that_of_its_checkpoint(context, trained, tmp_path):
    """Bit by bit without recovery. With it, within 3 points: evaluation may be in fp32, the checkpoint is in bf16."""
    trial = Trial(recipe(ratio=0.0, criterion="deepest", trained=trained), context)
    for _ in trial.scores([]):
        pass
    trial.finish(tmp_path / "out")
    scored = trial.heldout_results().scores["digits"]
    trial.close()
    assert sum(tensor.nbytes for tensor in tensors_of(tmp_path / "out").values()) == trial.size.size_bytes
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="auto")
    loaded(input_ids=torch.tensor([[1]]))  # weights are unpacked at the first pass of the whole model, not of its base
    again = context.evaluate(loaded, context.heldout).scores["digits"]
    if trained == "nothing":
        assert again.tolist() == scored.tolist()
        assert again.tolist() != context.heldout_baseline.scores["digits"].tolist()
    else:
        assert again.mean() == pytest.approx(scored.mean(), abs=0.03)


def test_a_budget_of_prune_holds_with_the_rounded_weights(tmp_path):
    how = {"mode": "layerwise", "budget": "25%"}
    done = prune_checkpoint("pocket", to=tmp_path / "small", quantization="int4", **how)
    assert done["shape"]["num_layers"] == 3
    assert done["size_ratio"] == pytest.approx(0.2455, abs=1e-4)  # 0.2801 with one layer more
    assert sum(tensor.nbytes for tensor in tensors_of(tmp_path / "small").values()) == done["size_bytes"]
    assert Recipe(**how_written(tmp_path / "small")).quantization == "int4"
    with pytest.raises(InputError, match="below the smallest model"):
        prune_checkpoint("pocket", to=tmp_path / "none", **how)


def how_written(folder):
    import yaml

    return yaml.safe_load((folder / "recipe.yaml").read_text())


def test_recipes_without_it_keep_their_names():
    plain = Recipe(mode="layerwise", ratio=0.3, criterion="block_influence")
    assert (plain.key, plain.key_without_ratio) == ("d3d2a3354e", "cc3ebfbf12")  # of the version before
    assert recipe("none").key == plain.key
    assert plain.as_dict()["quantization"] == "none"
    assert len({recipe(how).key for how in ("none", "int8", "int4")}) == 3
    assert "int4" in recipe("int4").describe()


def space(budgets=("30%", "60%"), **fields):
    content = {
        "name": "quantised",
        "model": "pocket",
        "budgets": list(budgets),
        "recipe": {
            "mode": ["layerwise", "widthwise"],
            "quantization": ["none", "int8", "int4"],
            "ratio": {"low": 0.0, "high": 0.7},
            "criterion": ["block_influence", "magnitude"],
        }
        | fields,
        "search": {"trials": 40},
    }
    return SearchSpace.model_validate(content)


def searcher_of(planned, sampler="tpe"):
    return Searcher(
        planned.space, planned.size_of, planned.dense, planned.budgets, num_trials=40, sampler=sampler, seed=1
    )


def test_a_budget_in_bytes_is_met_with_what_rounding_saves():
    planned = plan_study(space())
    searcher = searcher_of(planned)
    found = [searcher.suggest(str(number)) for number in range(24)]
    ratios = {how: [r.ratio for r in found if r.quantization == how] for how in ("none", "int8", "int4")}
    assert min(map(len, ratios.values())) > 2
    assert min(ratios["none"]) > 0.4  # 60% of the bytes in 16 bits
    assert min(ratios["int4"]) < 0.1  # the whole model in 4 bits takes 38%
    shares = [planned.size_of(made).size_bytes / planned.dense.size_bytes for made in found]
    assert max(shares) <= 0.6
    small = {made.quantization for made, share in zip(found, shares, strict=True) if share <= 0.3}
    assert small
    assert "none" not in small


def test_the_gain_model_knows_the_sizes_too():
    planned = plan_study(space())
    searcher = searcher_of(planned, "ehvi")
    found = [searcher.suggest(str(number)) for number in range(6)]
    assert len({made.quantization for made in found}) > 1
    assert all(planned.size_of(made).size_bytes <= 0.6 * planned.dense.size_bytes for made in found)


def test_a_budget_in_parameters_knows_no_rounding():
    planned = plan_study(space(["1.6M"]))
    searcher = searcher_of(planned)
    found = [searcher.suggest(str(number)) for number in range(12)]
    assert {"int8", "int4"} & {made.quantization for made in found}
    assert all(planned.size_of(made).num_params <= 1_600_000 for made in found)


def test_it_may_decide_about_later_dimensions():
    cases = [{"when": {"quantization": "int4"}, "low": 0.0, "high": 0.1}, {"low": 0.3, "high": 0.7}]
    searcher = searcher_of(plan_study(space([], ratio=cases)))
    found = [searcher.suggest(str(number)) for number in range(16)]
    assert {made.quantization for made in found} == {"none", "int8", "int4"}
    assert all((made.ratio <= 0.1) == (made.quantization == "int4") for made in found)


def test_the_smallest_model_is_a_rounded_one():
    planned = plan_study(space(["25%"]))
    assert planned.smallest().size_bytes < 0.25 * planned.dense.size_bytes
    with pytest.raises(InputError, match="no recipe of the space is small enough"):
        plan_study(space(["25%"], quantization="none"))


def test_bad_input_is_one_plain_line(monkeypatch, tmp_path):
    with pytest.raises(ValueError, match=r"recipe\.quantization: must be 'none', 'int8' or 'int4'"):
        space(quantization=["int4", "int3"])
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)
    for wrong in (
        lambda: plan_study(space()),
        lambda: prune_checkpoint("pocket", mode="layerwise", ratio=0, quantization="int8", to=tmp_path / "no"),
        lambda: save_checkpoint(dense("llama"), None, tmp_path / "no", recipe=recipe("int8")),
    ):
        with pytest.raises(InputError, match="compressed-tensors is missing; run pip install") as caught:
            wrong()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    plan_study(space(quantization="none"))
