"""Criteria against hand-made values and slow, obvious computations; tokens, gradients and refusals."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from raysearch.errors import InputError
from raysearch.models import family_for
from raysearch.pruning.importance import importance
from raysearch.pruning.importance.calibration import token_mask
from raysearch.pruning.importance.layer_skipping import LayerSkippingLoss
from raysearch.pruning.select_units import top
from tests.support.tiny_models import FAMILIES, NUM_LAYERS, dense

NAME = "llava_llama"


def batch_of(name: str = NAME, **settings) -> dict:
    return FAMILIES[name].batch(**settings)


def hidden_states(model, batch: dict) -> list[torch.Tensor]:
    """Input of every layer, and the output of the last before the final norm."""
    states: list[torch.Tensor] = []
    layers = family_for(model).decoder(model).layers
    handles = [layers[0].register_forward_pre_hook(lambda _, args, kw: states.append(args[0]), with_kwargs=True)]
    handles += [layer.register_forward_hook(lambda _, args, output: states.append(output)) for layer in layers]
    with torch.no_grad():
        model(**batch)
    for handle in handles:
        handle.remove()
    return states


def test_block_influence_is_one_minus_the_mean_cosine_of_real_tokens() -> None:
    model, batch = dense(NAME), batch_of()
    states = hidden_states(model, batch)
    assert len(states) == NUM_LAYERS + 1
    expected = []
    for before, after in itertools.pairwise(states):
        cosines = [
            float(torch.dot(a, b) / (a.norm() * b.norm()))
            for row in range(2)
            for a, b, real in zip(before[row], after[row], batch["attention_mask"][row], strict=True)
            if real
        ]
        assert len(cosines) == 2 * 20 - 3
        expected.append(1 - sum(cosines) / len(cosines))
    scores = importance(model, [batch], "block_influence")
    assert scores.layers == pytest.approx(expected, abs=1e-5)
    assert list(scores.layer_order) == list(np.argsort(expected))


def test_angular_distance_of_blocks() -> None:
    model, batch = dense(NAME), batch_of()
    states = hidden_states(model, batch)
    last = [19, 16]  # the last real token of each sample
    scores = importance(model, [batch], "angular")
    for start in range(NUM_LAYERS):
        for length in range(1, NUM_LAYERS - start + 1):
            angles = []
            for row, place in enumerate(last):
                a, b = states[start][row, place], states[start + length][row, place]
                angles.append(math.acos(float(torch.dot(a, b) / (a.norm() * b.norm()))) / math.pi)
            assert scores.block_distance[start, length - 1] == pytest.approx(sum(angles) / 2, abs=1e-4)
    assert np.isinf(scores.block_distance[1, NUM_LAYERS - 1])


@pytest.mark.parametrize("name", ["llava_llama", "qwen3_vl", "gemma3", "gemma3_text", "bunny"])
def test_replayed_losses_are_those_of_the_model(name: str) -> None:
    """With images, deep visual features, sliding windows, capped logits and parallel attention."""
    model, batches = dense(name), [batch_of(name), batch_of(name, seed=1)]
    with torch.inference_mode():
        replay = LayerSkippingLoss(model, iter(batches))
        without = replay.losses_without_each(range(NUM_LAYERS))
        counts = [int((batch["labels"][:, 1:] != -100).sum()) for batch in batches]

        def expected(skipped: int | None) -> float:
            clone = copy.deepcopy(model)
            if skipped is not None:
                family_for(clone).decoder(clone).layers[skipped].forward = lambda hidden_states, **_: hidden_states
            losses = [float(clone(**batch).loss) for batch in batches]
            return sum(loss * n for loss, n in zip(losses, counts, strict=True)) / sum(counts)

        assert replay.loss(range(NUM_LAYERS)) == pytest.approx(expected(None), rel=1e-5)
        assert without == {i: pytest.approx(expected(i), rel=1e-5) for i in without}
        assert min(without) == (2 if name == "qwen3_vl" else 0)


def test_greedy_drops_what_hurts_least_at_every_step() -> None:
    model, batch = dense(NAME), batch_of()
    order = list(importance(model, [batch], "greedy_loss").layer_order)
    with torch.inference_mode():
        replay = LayerSkippingLoss(model, [batch])
        left = list(range(NUM_LAYERS))
        for dropped in order[:-1]:
            losses = {i: replay.loss([j for j in left if j != i]) for i in left}
            assert losses[dropped] == pytest.approx(min(losses.values()), rel=1e-6)
            left.remove(dropped)
    assert sorted(order) == list(range(NUM_LAYERS))


def test_greedy_by_divergence_drops_what_changes_predictions_least() -> None:
    """Against whole models whose layers hand on the hidden state; the right answers don't matter."""
    model, batch = dense(NAME), batch_of()
    answers = batch["labels"][:, 1:] != -100
    silly = {**batch, "labels": torch.where(batch["labels"] == -100, -100, 7)}
    order = list(importance(model, [batch], "greedy_kl").layer_order)
    assert order == list(importance(model, [silly], "greedy_kl").layer_order)

    def log_probs(without: list[int]) -> torch.Tensor:
        clone = copy.deepcopy(model)
        for i in without:
            family_for(clone).decoder(clone).layers[i].forward = lambda hidden_states, **_: hidden_states
        return clone(**batch).logits[:, :-1][answers].log_softmax(-1)

    with torch.inference_mode():
        whole, gone = log_probs([]), []
        for dropped in order[:-1]:
            left = [i for i in range(NUM_LAYERS) if i not in gone]
            found = {
                i: torch.nn.functional.kl_div(log_probs([*gone, i]), whole, reduction="sum", log_target=True)
                for i in left
            }
            assert min(found, key=lambda i: float(found[i])) == dropped
            gone.append(dropped)


def test_deepest_spares_the_last_layer_to_the_end() -> None:
    assert list(importance(dense(NAME), None, "deepest").layer_order) == [2, 1, 0, 3]


def test_magnitude_by_hand() -> None:
    model = copy.deepcopy(dense("llama"))
    layer = model.model.layers[1]
    for parameter in layer.parameters():
        parameter.data.zero_()
    layer.mlp.gate_proj.weight.data[5, 0] = 2.0
    layer.mlp.up_proj.weight.data[5, 1] = -1.0
    layer.mlp.down_proj.weight.data[3, 5] = 2.0  # sqrt(4 + 1 + 4)
    layer.self_attn.q_proj.weight.data[8 * 3 + 1, 0] = 3.0  # head 3, of group 1
    layer.self_attn.o_proj.weight.data[0, 8 * 3] = 4.0
    layer.self_attn.k_proj.weight.data[8 * 1, 0] = 12.0
    scores = importance(model, None, "magnitude")
    assert scores.ffn_channels[1].nonzero()[0].tolist() == [5]
    assert scores.ffn_channels[1, 5] == pytest.approx(3.0)
    assert scores.heads[1].tolist() == pytest.approx([0, 0, 0, 5, 0, 0, 0, 0])
    assert scores.kv_groups[1].tolist() == pytest.approx([0, 13, 0, 0])


@pytest.mark.parametrize("name", ["llava_llama", "mini_internvl", "bunny"])
def test_taylor_is_the_sum_of_weight_times_gradient_per_unit(name: str) -> None:
    model = copy.deepcopy(dense(name))
    batches = [batch_of(name), batch_of(name, seed=1)]
    scores = importance(model, batches, "taylor")
    assert all(parameter.grad is None for parameter in model.parameters())
    expected = 0.0
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        mlp, channel = family_for(model).decoder(model).layers[2].mlp, 7
        for module in mlp.children():
            if isinstance(module, nn.Linear):
                product = (module.weight * module.weight.grad).abs()
                if module.out_features == 64:  # back to the hidden size
                    expected += product.detach()[:, channel].sum()
                elif module.out_features == 2 * 96:  # gate and up in one
                    expected += product.detach()[channel].sum() + product[96 + channel].sum()
                else:
                    expected += product.detach()[channel].sum()
                    if module.bias is not None:
                        expected += (module.bias * module.bias.grad).abs()[channel]
    assert scores.ffn_channels[2, 7] == pytest.approx(float(expected) / 2, rel=1e-4)


def test_second_order_taylor_is_half_the_mean_squared_gradient_of_a_gate() -> None:
    model, batch = copy.deepcopy(dense(NAME)), batch_of()
    scores = importance(model, [batch], "taylor2")
    down = family_for(model).decoder(model).layers[1].mlp.down_proj
    squares = np.zeros(96)
    for row in range(2):
        one = {key: value[row : row + 1] for key, value in batch.items()}
        gate = torch.ones(96, requires_grad=True)
        handle = down.register_forward_pre_hook(lambda _, args, gate=gate: (args[0] * gate,))
        model(**one).loss.backward()
        handle.remove()
        squares += gate.grad.double().square().numpy()
    np.testing.assert_allclose(scores.ffn_channels[1], squares / 2 / 2, rtol=1e-3, atol=1e-12)


def test_forward_criteria_by_hand() -> None:
    model, batch = dense(NAME), batch_of()
    down = family_for(model).decoder(model).layers[0].mlp.down_proj
    seen: list[torch.Tensor] = []
    handle = down.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(**batch)
    handle.remove()
    real = batch["attention_mask"].bool()
    rows, weight = seen[0][real], down.weight.detach()
    means = torch.stack([seen[0][i][real[i]].abs().mean(0) for i in range(2)])

    def scores_of(criterion: str) -> torch.Tensor:
        return torch.tensor(importance(model, [batch], criterion).ffn_channels[0])

    torch.testing.assert_close(scores_of("activation"), means.square().sum(0).sqrt(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores_of("wanda"), weight.abs().mean(0) * rows.norm(dim=0), rtol=1e-4, atol=1e-6)
    variance = rows.double().var(0, unbiased=False)
    expected = (variance * weight.double().square().sum(0)).float()
    torch.testing.assert_close(scores_of("fluctuation"), expected, rtol=1e-4, atol=1e-7)


def test_kinds_of_tokens() -> None:
    model, batch = dense(NAME), batch_of()
    real, masks = batch["attention_mask"].bool(), {}
    for kind in ("all", "image", "text", "answer", "last"):
        masks[kind] = token_mask(model, batch, kind)
    assert torch.equal(masks["all"], real)
    assert masks["image"].sum() == 2 * 4
    assert torch.equal(masks["image"] | masks["text"], real)
    assert masks["answer"].sum() == 5 + 2
    assert masks["last"].nonzero().tolist() == [[0, 19], [1, 16]]
    left = {**batch, "attention_mask": batch["attention_mask"].flip(1)}
    assert token_mask(model, left, "last").nonzero().tolist() == [[0, 19], [1, 19]]
    by_kind = [importance(model, [batch], "block_influence", tokens=kind).layers[0] for kind in masks]
    assert len(set(by_kind)) == len(by_kind)


def test_random_is_seeded() -> None:
    first, again, other = (importance(dense(NAME), None, "random", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.heads, again.heads)
    assert not np.array_equal(first.heads, other.heads)


def test_forward_criteria_never_track_gradients() -> None:
    model, batch = dense(NAME), batch_of()
    seen = []
    head = family_for(model).decoder(model).layers[-1]
    handle = head.register_forward_hook(lambda *_: seen.append(torch.is_inference_mode_enabled()))
    for criterion in ("block_influence", "angular", "one_shot_loss", "activation", "wanda", "fluctuation"):
        importance(model, [batch], criterion)
    handle.remove()
    assert all(seen)


def test_other_wrong_uses_are_refused() -> None:
    model, batch = dense(NAME), batch_of()
    unlabelled = {key: value for key, value in batch.items() if key != "labels"}
    with pytest.raises(InputError, match="no answer tokens"):
        importance(model, [unlabelled], "wanda", tokens="answer")
    with pytest.raises(InputError, match="'entropy': unknown; choose of block_influence"):
        importance(model, [batch], "entropy")
    with pytest.raises(InputError, match="tokens 'some': unknown"):
        importance(model, [batch], "wanda", tokens="some")


def test_the_top_units_ties_and_infinities() -> None:
    assert top(np.array([1.0, 3.0, 3.0, -np.inf, np.inf]), 3).tolist() == [1, 2, 4]
    assert top(np.zeros(5), 2).tolist() == [0, 1]
    with pytest.raises(InputError, match="NaN"):
        top(np.array([1.0, np.nan]), 1)
