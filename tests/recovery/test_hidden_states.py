"""Where student and teacher are compared: tokens and layers, by hand and against transformers' own hidden states."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from raysearch.config.settings import RecoverySettings
from raysearch.data.labels import IGNORED, answer_labels, answer_states
from raysearch.models import family_for
from raysearch.pruning.slicing import full_units, slice_model
from raysearch.recovery.hidden_states import LAST_OF_ANSWERS, DistillationPoints
from raysearch.recovery.losses import RecoveryLoss
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.trainer import RecoveryTrainer
from tests.support.recovery_setup import cached_teacher, recipe, samples, tiny_encoder, tiny_family, tiny_model
from tests.support.tiny_models import FAMILIES

ENCODER, IMAGE = tiny_encoder(), 5
EVERYWHERE = {"hidden_layers": [0.5, 1.0], "kd_tokens": "answers+images"}


def test_positions_by_hand() -> None:
    x, other = IGNORED, 7
    batch = {
        "input_ids": torch.tensor([[IMAGE, IMAGE, other, 8, 9], [other, IMAGE, 8, 0, 0], [IMAGE, 8, 9, 0, 0]]),
        "labels": torch.tensor([[x, x, x, 8, 9], [x, x, 8, x, x], [x, x, x, x, x]]),
    }
    both = DistillationPoints(image_token=IMAGE)
    wanted = [[True, True, True, True], [False, True, False, False], [False] * 4]  # no answer, nothing compared
    assert both.positions(batch).tolist() == wanted
    assert both.labels(batch).tolist() == [x, x, 8, 9, 8]
    rows = [{key: value[row] for key, value in batch.items()} for row in range(3)]
    assert [both.num_positions(row) for row in rows] == [4, 1, 0]
    assert [LAST_OF_ANSWERS.num_positions(row) for row in rows] == [2, 1, 0]
    assert torch.equal(LAST_OF_ANSWERS.labels(batch), answer_labels(batch))


@pytest.mark.parametrize(
    ("depths", "layers"),
    [([1.0], ()), ([0.5], (4,)), ([0.5, 1.0], (4,)), ([0.01, 0.25, 0.99], (1, 2, 7)), ([0.5, 0.51], (4,))],
)
def test_depths_are_of_the_dense_decoder(depths: list[float], layers: tuple[int, ...]) -> None:
    """Eight layers."""
    config = SimpleNamespace(num_hidden_layers=8)
    family = SimpleNamespace(text_config=lambda config: config, image_token_id=lambda config: IMAGE)
    found = DistillationPoints.of(RecoverySettings(hidden_layers=depths), family, config)
    assert found == DistillationPoints(layers, None)
    asked = RecoverySettings(hidden_layers=depths, kd_tokens="answers+images")
    assert DistillationPoints.of(asked, family, config) == DistillationPoints(layers, IMAGE)


def test_a_student_is_compared_behind_what_it_has_kept_of_the_layers_before() -> None:
    dense = DistillationPoints((1, 3, 4, 6), IMAGE)  # behind layers 0, 2, 3 and 5
    assert dense.in_student([0, 1, 4, 5]) == DistillationPoints((1, 2, 2, 4), IMAGE)
    assert dense.in_student([2, 5]) == DistillationPoints((0, 1, 1, 2), IMAGE)
    assert dense.in_student(range(6)) == dense


@pytest.mark.parametrize("name", FAMILIES)
def test_states_are_transformers_own(name: str) -> None:
    """Before the first layer, between layers, and the last normalised ones."""
    tiny = FAMILIES[name]
    model, batch = tiny.model(), tiny.batch(padded=True)
    family = family_for(model)
    points = DistillationPoints(tuple(range(len(family.decoder(model).layers))))
    inputs = {key: value for key, value in batch.items() if key != "labels"}
    with torch.no_grad():
        found = points.states(model, family, batch)
        wanted = model(**inputs, output_hidden_states=True).hidden_states
        assert torch.equal(found[:, -1], answer_states(model, batch))
    positions = points.positions(batch)
    for place, states in enumerate(wanted):
        torch.testing.assert_close(found[:, place], states[:, :-1][positions])


def test_terms_over_several_states_by_hand() -> None:
    """Two positions, two states each; the second position is no answer's."""
    student = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[1.0, 0.0], [1.0, 1.0]]])
    teacher = torch.tensor([[[3.0, 0.0], [0.0, 2.0]], [[0.0, 2.0], [1.0, 1.0]]])
    head, labels = torch.nn.Identity(), torch.tensor([1, IGNORED])
    given = (student, labels, head, teacher, head, 2)
    # Relative squared errors: 8 / 4.5 and 0 at the first position, 2.5 / 2 and 0 at the second.
    both = RecoveryLoss({"sft": 1.0, "hidden_kd": 1.0}).sums(*given)
    torch.testing.assert_close(both["hidden_kd"], torch.tensor((8 / 4.5 + 2.5 / 2) / 2))
    torch.testing.assert_close(both["sft"], torch.tensor([0.0, 2.0]).logsumexp(0) - 2.0)
    inner = RecoveryLoss({"hidden_kd": 1.0}, match_last=False).sums(*given)
    torch.testing.assert_close(inner["hidden_kd"], torch.tensor(8 / 4.5 + 2.5 / 2))
    sums = {"sft": torch.tensor(6.0), "logits_kd": torch.tensor(10.0)}
    loss = RecoveryLoss({"sft": 2.0, "logits_kd": 3.0}).loss(sums, {"sft": 4, "logits_kd": 5})
    assert loss == 2 * 6 / 4 + 3 * 10 / 5
    assert RecoveryLoss({"sft": 2.0}).loss({"sft": torch.tensor(0.0)}, {"sft": 0}) == 0


def _start(
    teacher: Teacher, model: Any = None, kept: list[int] | None = None, more: Any = None, **values: Any
) -> RecoveryTrainer:
    settings = RecoverySettings(batch_size=8, precision="fp32", **({"zero_stage": 1} | (more or {})))
    model = tiny_model(1) if model is None else model
    return RecoveryTrainer(model, tiny_family(), recipe(**values), samples(), ENCODER, teacher, settings, kept)


def _points(model: Any, more: dict[str, Any]) -> DistillationPoints:
    return DistillationPoints.of(RecoverySettings(**more), tiny_family(), model.config)


def test_dropping_a_layer_that_does_nothing_leaves_nothing_to_distil() -> None:
    """Four layers, of which the second adds nothing: behind every other one the states are those of the dense model."""
    config = copy.deepcopy(tiny_model().config)
    config.text_config.num_hidden_layers = 4
    torch.manual_seed(0)
    dense = type(tiny_model())(config).eval()
    idle = dense.model.language_model.layers[1]
    for weight in (idle.self_attn.o_proj.weight, idle.mlp.down_proj.weight):
        torch.nn.init.zeros_(weight)
    kept = [0, 2, 3]
    more = {"hidden_layers": [0.25, 0.5, 0.75, 1.0], "kd_tokens": "answers+images"}
    teacher = Teacher(dense, tiny_family(), _points(dense, more))
    found = {}
    for name, layers in {"right": kept, "as if nothing were dropped": None}.items():
        recovery = _start(teacher, slice_model(dense, kept, full_units(dense)), layers, more, sft=0, lr=1e-9)
        found[name] = recovery.train_until(8)
        recovery.close()
    assert max(found["right"].values()) < 1e-6
    assert found["as if nothing were dropped"]["hidden_kd"] > 1e-3


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_from_the_cache_as_online(tmp_path: Path, kl: str) -> None:
    """Within the rounding of bf16: 2^-9 of a state at most, and losses are smooth in them."""
    points = _points(tiny_model(), EVERYWHERE)
    assert points == DistillationPoints((1,), tiny_model().config.image_token_id)
    runs = []
    for teacher in (Teacher(tiny_model(), tiny_family(), points), cached_teacher(tmp_path, points=points)):
        recovery = _start(teacher, more=EVERYWHERE, kl=kl)
        runs.append([recovery.train_until(end) for end in (8, 24, 40)])
        recovery.close()
    for mine, theirs in zip(*runs, strict=True):
        assert mine == pytest.approx(theirs, rel=2**-9)
    states = cached_teacher(tmp_path, points=points)
    plain = cached_teacher(tmp_path)
    assert states.shard_key(0) != plain.shard_key(0), "another cache's states are not taken for these"


def test_image_tokens_take_part_in_distillation_alone() -> None:
    """The first step's losses: cross-entropy stays as it is; distillation becomes the mean over more tokens."""
    model = tiny_model()
    found = []
    for more in ({}, {"kd_tokens": "answers+images"}):
        recovery = _start(Teacher(model, tiny_family(), _points(model, more)), more=more)
        step = recovery.microbatches.step(0, 8, 8)
        num_images = sum(int((one["input_ids"] == model.config.image_token_id).sum()) for one, _ in step.microbatches)
        assert step.num_points == step.num_answer_tokens + num_images * bool(more)
        found.append(recovery.train_until(8))
        recovery.close()
    assert found[0]["sft"] == pytest.approx(found[1]["sft"], rel=1e-6)
    assert found[0]["logits_kd"] != pytest.approx(found[1]["logits_kd"], rel=1e-2)
    assert found[0]["hidden_kd"] != pytest.approx(found[1]["hidden_kd"], rel=1e-2)


@pytest.mark.parametrize(
    "changes", [{"zero_stage": 2}, {"zero_stage": 3}, {"gradient_checkpointing": True}, {"tokens_per_pass": 512}]
)
def test_inner_states_are_the_same_however_memory_is_saved(changes: dict[str, Any]) -> None:
    """Without the last state, so that some trained parameters have no gradient."""
    where = {"hidden_layers": [0.5], "kd_tokens": "answers+images"}
    teacher, runs = Teacher(tiny_model(), tiny_family(), _points(tiny_model(), where)), []
    for more in ({}, changes):
        recovery = _start(teacher, more=where | more, sft=0, logits_kd=0)
        runs.append([recovery.train_until(end)["hidden_kd"] for end in (8, 16, 40)])
        recovery.close()
    assert runs[1] == pytest.approx(runs[0], rel=1e-5)
    assert runs[0][-1] < runs[0][0]
