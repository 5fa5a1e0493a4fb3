"""Recovery on a tiny LLaVA, through DeepSpeed: what is trained, that nothing but the samples seen matters, and ends."""

import gc
import json
import math
import threading
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForImageTextToText

from raysearch.config.settings import RecoverySettings
from raysearch.data.bad_rows import BadRows
from raysearch.data.labels import IGNORED
from raysearch.data.samples import Sample
from raysearch.errors import InputError
from raysearch.recovery import checkpoint
from raysearch.recovery.deepspeed_engine import compute_dtype, local, master_states
from raysearch.recovery.hidden_states import LAST_OF_ANSWERS, DistillationPoints
from raysearch.recovery.losses import RecoveryLoss
from raysearch.recovery.schedule import SampleOrder, average_decay, group_by_tokens, lr_factor
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.trainer import RecoveryTrainer, StudentWithLoss
from raysearch.trials.context import calibration_rows
from tests.support.recovery_setup import recipe, samples, shared_teacher, tiny_encoder, tiny_family, tiny_model

PARTS = ("projector", "projector+lora", "projector+decoder", "decoder")
ENCODER = tiny_encoder()
TEACHER = shared_teacher()
ONLINE = Teacher(tiny_model(), tiny_family())


def start(more: dict[str, Any] | None = None, teacher: Teacher | None = TEACHER, **values: Any) -> RecoveryTrainer:
    chosen = {"batch_size": 8, "precision": "fp32", "zero_stage": 1} | (more or {})
    model = tiny_model(seed=1)
    return RecoveryTrainer(
        model, tiny_family(), recipe(**values), samples(), ENCODER, teacher, RecoverySettings(**chosen)
    )


def series(recovery: RecoveryTrainer, ends: list[int]) -> list[dict[str, float]]:
    return [recovery.train_until(end) for end in ends]


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    batch = ENCODER.collate([ENCODER.encode(sample) for sample in samples()[:3]])
    del batch["labels"]
    return model(**{key: v.to(model.dtype) if v.is_floating_point() else v for key, v in batch.items()}).logits


@pytest.mark.parametrize("part", PARTS)
def test_only_what_the_recipe_names_is_trained(part: str) -> None:
    before = {name: param.clone() for name, param in tiny_model(seed=1).named_parameters()}
    recovery = start(trained=part)
    recovery.train_until(16)
    held = sum(master.numel() for master, _ in master_states(recovery.engine))
    trained = sum(param.numel() for param in recovery.trained_params.values())
    assert trained <= held <= trained + 64, "optimizer state for more than what is trained (but alignment)"
    for name, param in recovery.model.named_parameters():
        if not param.requires_grad:
            assert param.grad is None, name
    after = dict(recovery.finished_model().named_parameters())
    assert after.keys() == before.keys()
    changed = {name for name, param in after.items() if not torch.equal(param, before[name])}
    projector = {name for name in before if "multi_modal_projector" in name}
    decoder = {name for name in before if "language_model" in name or "lm_head" in name}
    linear = {name for name in decoder if "layers" in name and "norm" not in name}
    expected = {"projector": projector, "lora": linear, "decoder": decoder}
    assert changed == set().union(*(expected[word] for word in part.split("+")))
    recovery.close()


@pytest.mark.parametrize("stage", [1, 3])
def test_in_bf16_a_model_is_scored_as_it_will_be_loaded(stage: int, tmp_path: Path) -> None:
    """Rotary frequencies stay in fp32, as in a loaded checkpoint: the same logits, bit by bit."""
    recovery = start({"precision": "bf16", "zero_stage": stage}, trained="decoder")
    recovery.train_until(8)
    with recovery.weights_for_evaluation() as model:
        scored = logits(model)
        assert {buffer.dtype for buffer in model.buffers() if buffer.is_floating_point()} == {torch.float32}
    model = recovery.finished_model()
    model.to(torch.bfloat16).save_pretrained(tmp_path)
    recovery.close()
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert torch.equal(logits(loaded), scored)


def test_losses_are_named_as_weighed_and_fall() -> None:
    """Distillation alone, then cross-entropy alone: the teacher here is random, so together they would quarrel."""
    for weights in ({"sft": 0.0}, {"logits_kd": 0.0, "hidden_kd": 0.0}):
        recovery = start(lr=1e-2, epochs=4, **weights)
        first, _, last = series(recovery, [16, 80, 160])
        assert list(first) == (["logits_kd", "hidden_kd"] if "sft" in weights else ["sft"])
        assert all(last[name] < 0.9 * first[name] for name in first), (first, last)
        assert recovery.train_until(160) == {}
        recovery.close()


def test_a_student_that_is_the_teacher_has_nothing_to_distil() -> None:
    model = tiny_model()
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    same = recipe(sft=0, lr=1e-9)
    recovery = RecoveryTrainer(model, tiny_family(), same, samples(), ENCODER, ONLINE, chosen)
    found = recovery.train_until(8)
    assert max(found.values()) < 1e-6
    recovery.close()


def test_same_seed_same_series_and_another_seed_another() -> None:
    ends = [8, 20, 32]
    runs = [series(start(seed=seed, trained="projector+lora"), ends) for seed in (0, 0, 1)]
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_stage_gives_the_same_series(precision: str) -> None:
    """One worker: ZeRO moves numbers about and changes none, but for the order of a sum in stage 3's clipping."""
    runs = []
    for stage in (0, 1, 2, 3):
        recovery = start({"zero_stage": stage, "precision": precision})
        runs.append([found["sft"] for found in series(recovery, [8, 16, 24, 32, 40])])
        recovery.close()
    for run in runs[1:]:
        assert run == pytest.approx(runs[0], rel=1e-5 if precision == "fp32" else 1e-3)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("part", ["projector+lora", "projector+decoder"])
def test_saved_and_restored_is_unbroken(tmp_path: Path, stage: int, part: str) -> None:
    more = {"zero_stage": stage, "weight_average": True, "precision": "bf16"}
    ends = [8, 20, 28, 40]
    whole = start(more, trained=part)
    unbroken = series(whole, ends)
    with whole.weights_for_evaluation() as model:
        wanted = logits(model)
    whole.close()
    first = start(more, trained=part)
    series(first, ends[:2])
    first.save(tmp_path)
    first.close()
    second = start(more, trained=part)
    second.train_until(8)  # restoring must undo this
    second.restore(tmp_path)
    assert series(second, ends[2:]) == unbroken[2:]
    with second.weights_for_evaluation() as model:
        assert torch.equal(logits(model), wanted)
    second.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_many_microbatches_are_one_step(stage: int) -> None:
    whole, parted = start({"zero_stage": stage}), start({"zero_stage": stage})
    parted.microbatches.max_tokens = 250  # two rows, or three short ones
    for one, other in zip(series(whole, [8, 21, 32]), series(parted, [8, 21, 32]), strict=True):
        assert other == pytest.approx(one, rel=1e-5)
    whole.close()
    parted.close()


def test_rows_are_read_while_the_step_before_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """And by one thread at a time; nothing is read beyond the rung."""
    recovery, encode, events = start(logits_kd=0, hidden_kd=0), ENCODER.encode, []
    order = recovery.microbatches.order
    places = {samples()[order[position]].id: position for position in range(40)}

    def noted(sample: Sample) -> Any:
        events.append((places[sample.id], threading.current_thread() is threading.main_thread()))
        return encode(sample)

    monkeypatch.setattr(ENCODER, "encode", noted)
    recovery.train_until(20)
    assert events == [(position, position < 8) for position in range(20)]
    recovery.close()


def test_a_projector_alone_among_rows_without_images() -> None:
    say = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}  # noqa: E731
    texts = [Sample(f"t{i}", "text", (), [say("user", "is it red?"), say("assistant", "yes")]) for i in range(9)]
    chosen = RecoverySettings(batch_size=1, precision="fp32", zero_stage=1)
    rows, alone = [*texts, samples()[0]], recipe(trained="projector")
    recovery = RecoveryTrainer(tiny_model(1), tiny_family(), alone, rows, ENCODER, ONLINE, chosen)
    assert recovery.train_until(10)["sft"] > 0
    recovery.close()


def test_a_checkpoint_holds_what_is_trained_only(tmp_path: Path) -> None:
    recovery = start(trained="projector+lora", lora_rank=2)
    recovery.save(tmp_path)
    num_trained = sum(param.numel() for param in recovery.trained_params.values())
    assert (tmp_path / "weights.safetensors").stat().st_size < 4 * num_trained + 8192
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "position.json",
        "weights.safetensors",
        "worker-0.safetensors",
    ]
    recovery.close()


def test_foreign_and_broken_checkpoints_are_refused(tmp_path: Path) -> None:
    recovery = start()
    with pytest.raises(InputError, match="no checkpoint"):
        recovery.restore(tmp_path)
    recovery.save(tmp_path)
    other = start(seed=5)
    with pytest.raises(InputError, match="recipe is"):
        other.restore(tmp_path)
    other.close()
    other = start({"batch_size": 4})
    with pytest.raises(InputError, match="batch_size is 8, here 4; start the trial again"):
        other.restore(tmp_path)
    before = [master.clone() for master, _ in master_states(recovery.engine)]
    position = json.loads((tmp_path / "position.json").read_text())
    for foreign in ([], [(torch.zeros(3), {})]):
        checkpoint.save(tmp_path, 0, checkpoint.RecoveryState({}, foreign, []), position)
        with pytest.raises(InputError, match="tensors are not those of this model; start the trial again"):
            recovery.restore(tmp_path)
    assert all(map(torch.equal, before, (master for master, _ in master_states(recovery.engine))))
    (tmp_path / "worker-0.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match="no checkpoint"):
        recovery.restore(tmp_path)
    recovery.close()
    other.close()


@pytest.mark.parametrize("stage", [1, 3])
def test_evaluation_leaves_no_trace(stage: int) -> None:
    ends = [8, 16, 24]
    more = {"zero_stage": stage, "weight_average": True}
    unbroken = series(start(more, trained="projector+lora"), ends)
    recovery = start(more, trained="projector+lora")
    found = []
    for end in ends:
        found.append(recovery.train_until(end))
        with recovery.weights_for_evaluation() as model:
            assert not model.training
            assert logits(model).isfinite().all()
            model.generate(input_ids=torch.tensor([[1, 4, 9]]), max_new_tokens=2, do_sample=False)
    assert found == unbroken


def test_merged_adapters_answer_as_unmerged() -> None:
    recovery = start(trained="projector+lora", lr=1e-2)
    recovery.train_until(40)
    recovery.model.eval()
    apart = logits(recovery.model)
    assert not torch.allclose(apart, logits(tiny_model(seed=1)), atol=1e-2)
    with recovery.weights_for_evaluation() as model:
        torch.testing.assert_close(logits(model), apart, rtol=1e-4, atol=1e-4)
    assert torch.equal(logits(recovery.model), apart)
    recovery.close()


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("part", PARTS)
def test_the_finished_model_is_plain(tmp_path: Path, part: str, stage: int) -> None:
    recovery = start({"zero_stage": stage}, trained=part)
    recovery.train_until(24)
    with recovery.weights_for_evaluation() as model:
        wanted = logits(model)
    model = recovery.finished_model()
    recovery.close()
    assert type(model) is type(tiny_model())
    assert not any(param.requires_grad for param in model.parameters())
    model.save_pretrained(tmp_path)
    loaded = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(loaded), wanted)


def test_the_average_lags_and_is_used_for_evaluation_only() -> None:
    plain, averaged = (start({"batch_size": 2, "weight_average": wanted}) for wanted in (False, True))
    assert series(plain, [8, 40]) == series(averaged, [8, 40])
    with plain.weights_for_evaluation() as last, averaged.weights_for_evaluation() as mean:
        assert not torch.equal(logits(last), logits(mean))
    assert not torch.equal(*(logits(recovery.finished_model()) for recovery in (plain, averaged)))


def test_closing_frees_everything() -> None:
    """Eight engines in one process, and none of them stays."""
    gone = []
    for _ in range(8):
        recovery = start(trained="projector+lora")
        recovery.train_until(2)
        gone += [weakref.ref(recovery.engine), weakref.ref(recovery.model), weakref.ref(recovery)]
        recovery.close()
        del recovery
    gc.collect()
    assert not [ref for ref in gone if ref() is not None]


def test_a_loss_that_is_not_finite_ends_the_trial() -> None:
    model = tiny_model(seed=1)
    nn.init.constant_(model.model.language_model.norm.weight, math.inf)
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    recovery = RecoveryTrainer(model, tiny_family(), recipe(), samples(), ENCODER, TEACHER, chosen)
    with pytest.raises(FloatingPointError, match="sft is nan in the step from sample 0 to 8"):
        recovery.train_until(8)
    recovery.close()


def test_bad_samples_take_no_part_up_to_the_limit() -> None:
    short = tiny_encoder(max_length=len(ENCODER.encode(samples()[0])["input_ids"]))
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    recovery = RecoveryTrainer(tiny_model(1), tiny_family(), recipe(), samples(), short, TEACHER, chosen)
    with pytest.raises(InputError, match=r"more than 1.0% of 40 rows can't be used"):
        recovery.train_until(40)
    recovery.close()


@pytest.mark.parametrize("harm", ["a broken picture", "too long"])
def test_a_bad_sample_within_the_limit_is_named_and_left_out(harm: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = [replace(samples()[index % 40], id=f"row-{index}") for index in range(104)]
    broken = {"a broken picture": (b"no picture",), "too long": rows[3].images * 20}[harm]
    placeholders = [{"type": "image"}] * (len(broken) - 1)
    first, *others = rows[3].messages
    rows[3] = replace(rows[3], images=broken, messages=[first | {"content": placeholders + first["content"]}, *others])
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    alone = recipe(logits_kd=0, hidden_kd=0)
    recovery = RecoveryTrainer(tiny_model(1), tiny_family(), alone, rows, ENCODER, None, chosen)
    assert recovery.train_until(104)["sft"] > 0
    assert [record.getMessage() for record in caplog.records if "left out 1 of 104" in record.getMessage()]
    assert "row row-3: " in caplog.text
    assert {"a broken picture": "can't be read", "too long": "more than max_length"}[harm] in caplog.text
    recovery.close()


def test_importance_is_measured_on_the_first_rows_that_can_be_used(caplog: pytest.LogCaptureFixture) -> None:
    rows = [replace(sample, id=f"row-{index}") for index, sample in enumerate(samples()[:8])]
    rows[1] = replace(rows[1], images=(b"no picture",))
    bad_rows = BadRows("rows.json", 100)
    found = list(calibration_rows(rows, ENCODER, bad_rows))
    assert [id(row) for row in found] == [id(ENCODER.encode(row)) for row in rows if row.images and row is not rows[1]]
    assert list(bad_rows.found) == ["row row-1"]


def test_a_recipe_all_of_whose_samples_are_bad_ends_with_one_line() -> None:
    rows = [replace(samples()[index % 40], id=f"row-{index}") for index in range(200)]
    rows[0] = replace(rows[0], images=(b"no picture",))
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    alone = recipe(logits_kd=0, hidden_kd=0, data_fraction=0.005)
    recovery = RecoveryTrainer(tiny_model(1), tiny_family(), alone, rows, ENCODER, None, chosen)
    with pytest.raises(InputError, match=r"none of its 1 samples can be used \(row row-0: image 10 bytes"):
        recovery.train_until(1)
    recovery.close()


def _let_memory_run_out(layer: nn.Module, most_tokens: int, where: str) -> None:
    """Microbatches of more tokens than that fail in this layer, in the forward or the backward pass."""

    def check(num_tokens: int) -> None:
        if num_tokens > most_tokens:
            raise torch.OutOfMemoryError("simulated")

    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output  # (rows, length, hidden)
        num_tokens = hidden.shape[0] * hidden.shape[1]
        if where == "forward":
            check(num_tokens)
        elif hidden.requires_grad:
            hidden.register_hook(lambda gradient: check(num_tokens))

    layer.register_forward_hook(hook)


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_when_memory_runs_out_microbatches_are_halved_and_nothing_is_lost(stage: int, where: str) -> None:
    more = {"zero_stage": stage, "weight_average": True}
    ends = [8, 21, 40]
    whole, parted = start(more, trained="projector+lora"), start(more, trained="projector+lora")
    wanted = series(whole, ends)
    found = series(parted, ends[:1])
    assert parted.microbatches.max_tokens is None
    _let_memory_run_out(parted.model.model.language_model.layers[1], 250, where)
    found += series(parted, ends[1:])
    assert parted.microbatches.max_tokens is not None
    for mine, theirs in zip(found, wanted, strict=True):  # sums over rows are added in another order
        assert mine == pytest.approx(theirs, rel=1e-5)
    whole.close()
    parted.close()


def test_a_row_too_large_for_the_memory_ends_the_trial() -> None:
    recovery = start()
    _let_memory_run_out(recovery.model.model.language_model.layers[1], 10, "forward")
    with pytest.raises(torch.OutOfMemoryError):
        recovery.train_until(8)
    recovery.close()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_offloading_changes_nothing(tmp_path: Path, stage: int) -> None:
    runs = []
    for offload in ("none", "cpu"):
        recovery = start({"zero_stage": stage, "offload": offload, "precision": "bf16"})
        offloaded = recovery.engine_config["zero_optimization"].get("offload_optimizer", {}).get("device")
        assert offloaded == ("cpu" if offload == "cpu" else None)
        runs.append(series(recovery, [8, 24]))
        recovery.save(tmp_path / offload)
        runs[-1] += series(recovery, [40])
        recovery.restore(tmp_path / offload)
        assert series(recovery, [40]) == runs[-1][-1:]
        recovery.close()
    for mine, theirs in zip(*runs, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)


def test_gradients_are_clipped() -> None:
    """A bound so low that a step of plain SGD moves nothing measurable."""
    sgd = {"optimizer": {"type": "SGD", "params": {"lr": 1e-2}}}
    moved = []
    for bound in (1e-6, 1e3):
        recovery = start({"grad_clip": bound, "deepspeed": sgd}, trained="projector")
        held = [local(param) for param in recovery.trained_params.values()]
        before = [value.clone() for value in held]
        recovery.train_until(8)
        now = [local(param) for param in recovery.trained_params.values()]
        moved.append(sum((new - old).norm().item() for new, old in zip(now, before, strict=True)))
        recovery.close()
    assert moved[0] < 1e-7 < moved[1]


def test_what_cannot_be_trained_is_refused() -> None:
    with pytest.raises(InputError, match="teacher"):
        start(teacher=None)
    with pytest.raises(InputError, match=r"data_fraction: 0\.01 of 40 samples is none"):
        start(data_fraction=0.01)


@settings(deadline=None, max_examples=30, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(data=st.data(), part=st.sampled_from(PARTS[1:]))
def test_any_mask_any_lengths_any_answers(data: st.DataObject, part: str) -> None:
    """Empty and one-token answers, rows that are padding alone: finite losses, gradients where they belong only."""
    from raysearch.recovery.trainable_params import choose_trained

    num_rows, length = data.draw(st.integers(1, 3)), data.draw(st.integers(2, 12))
    lengths = data.draw(st.lists(st.integers(0, length), min_size=num_rows, max_size=num_rows))
    flags = st.lists(st.booleans(), min_size=num_rows * length, max_size=num_rows * length)
    mask = torch.arange(length) < torch.tensor(lengths)[:, None]
    ids = torch.randint(7, 50, (num_rows, length))
    is_answer = torch.tensor(data.draw(flags)).view(num_rows, length) & mask
    batch = {"input_ids": ids, "attention_mask": mask.long(), "labels": ids.where(is_answer, torch.tensor(IGNORED))}
    model = tiny_model(seed=1)
    model.set_attn_implementation(data.draw(st.sampled_from(["eager", "sdpa"])))
    trained = choose_trained(model, tiny_family(), recipe(trained=part))
    loss = RecoveryLoss.of(recipe(trained=part))
    points = data.draw(st.sampled_from([LAST_OF_ANSWERS, DistillationPoints((0, 1), image_token=9)]))
    teacher = Teacher(ONLINE.model, tiny_family(), points)
    targets = teacher.targets(batch, range(num_rows))
    sums = StudentWithLoss(model, tiny_family(), loss, teacher, points)(batch, targets)
    loss.loss(sums, dict.fromkeys(sums, len(targets))).backward()
    assert all(value.isfinite() for value in sums.values())
    for name, param in model.named_parameters():
        if name not in trained:
            assert param.grad is None, name
        elif "projector" not in name:  # there is no image for it
            assert param.grad is not None, name
            assert param.grad.isfinite().all(), name


def test_wsd_and_cosine() -> None:
    wsd = [lr_factor("wsd", done, 0.1) for done in (0.0, 0.05, 0.1, 0.5, 0.8, 0.9, 1.0)]
    assert wsd == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0])
    cosine = [lr_factor("cosine", done, 0.2) for done in (0.1, 0.2, 0.6, 1.0)]
    assert cosine == pytest.approx([0.5, 1, 0.5, 0])
    assert lr_factor("wsd", 0.0, 0.0) == 1
    assert 0 <= lr_factor("wsd", 0.95, 0.9) <= 1


def test_the_average_reaches_back_a_tenth() -> None:
    assert average_decay(8, 8) == 0
    assert average_decay(800, 8) == pytest.approx(0.9)


@given(st.integers(1, 50), st.integers(0, 5))
def test_every_epoch_takes_every_sample_once(num_samples: int, seed: int) -> None:
    order = SampleOrder(num_samples, seed)
    seen = [order[position] for position in range(3 * num_samples)]
    for epoch in range(3):
        assert sorted(seen[epoch * num_samples : (epoch + 1) * num_samples]) == list(range(num_samples))
    assert order[1 % num_samples] == seen[1 % num_samples], "going back gives the same"


@given(st.lists(st.integers(1, 100), max_size=20), st.integers(1, 300))
def test_groups_keep_to_their_tokens(lengths: list[int], max_tokens: int) -> None:
    groups = group_by_tokens(lengths, max_tokens)
    assert sorted(row for rows in groups for row in rows) == list(range(len(lengths)))
    for rows in groups:
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= max_tokens
    assert group_by_tokens(lengths, None) == ([list(range(len(lengths)))] if lengths else [])


def test_precision_follows_the_hardware() -> None:
    assert compute_dtype("fp32") == torch.float32
    assert compute_dtype("bf16") == torch.bfloat16
    assert compute_dtype("auto") in (torch.float32, torch.bfloat16)
