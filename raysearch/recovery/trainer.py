"""Recovery training: a pruned model, a recipe's losses, and a DeepSpeed engine, up to any number of samples seen."""

import copy
import gc
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch import progress
from raysearch.config.recipe import Recipe
from raysearch.config.settings import RecoverySettings
from raysearch.data.bad_rows import BadRows
from raysearch.data.encoding import Batch, Encoder
from raysearch.data.samples import Sample
from raysearch.errors import InputError
from raysearch.models import Family
from raysearch.models.precision import cast_weights
from raysearch.models.vision_cache import VisionCache
from raysearch.recovery import checkpoint, trainable_params
from raysearch.recovery.batching import Microbatch, MicrobatchLoader
from raysearch.recovery.deepspeed_engine import (
    collective_io,
    compute_dtype,
    current_device,
    deepspeed_config,
    master_states,
    quiet_deepspeed,
    start_distributed,
    start_engine,
)
from raysearch.recovery.hidden_states import LAST_OF_ANSWERS, DistillationPoints
from raysearch.recovery.losses import RecoveryLoss
from raysearch.recovery.memory_planner import MemoryPlan, free_bytes, host_bytes, needs_of, plan_memory
from raysearch.recovery.schedule import SampleOrder, lr_factor
from raysearch.recovery.teacher import Teacher, language_head
from raysearch.recovery.weight_average import WeightAverage

RESUME_INVARIANTS = {
    "batch_size", "max_length", "hidden_layers", "kd_tokens", "schedule", "warmup", "grad_clip", "deepspeed",
}  # fmt: skip
"""Settings that must match for a checkpoint to be resumed."""

logger = logging.getLogger(__name__)


class RecoveryTrainer:
    """Trains one pruned model. Every worker of a trial has its own; they share each step's samples.

    Only the samples seen decide what a step does, so a run that is saved and restored, or that pauses at rungs, equals
    an uninterrupted run. A rung between two steps ends a batch early, in every run with the same rungs.

    Attributes:
        model: the model, as it is trained.
        trained_params: what the recipe trains, by name in the model.
        engine: DeepSpeed's.
        engine_config: the configuration that it has.
        microbatches: this worker's share of the data.
        samples_seen, samples_to_see: by all workers, up to now and in the whole trial.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        recipe: Recipe,
        samples: Sequence[Sample],
        encoder: Encoder,
        teacher: Teacher | None,
        settings: RecoverySettings,
        kept_layers: Sequence[int] | None = None,
        bad_rows: BadRows | None = None,
        vision: VisionCache | None = None,
    ) -> None:
        """Start the engine; nothing is trained yet.

        Args:
            model: the pruned model; it is trained in place.
            samples: the whole data set in the order in which fractions take it; the recipe's fraction is a prefix.
            teacher: the dense model; may be None when the recipe weighs no distillation loss.
            kept_layers: which of the dense decoder's layers the model has; None for all of them.
            bad_rows: collects the samples that can't be used, of all trials on these samples; None for this trial's.
            vision: cache of the vision tower's outputs; None to run the tower at every step.

        Raises:
            InputError: the recipe trains no part of this model, its fraction holds no sample, or the teacher is
                missing or has another vocabulary.
        """
        self.recipe, self.settings, self.model = recipe, settings, model
        self._family, self._decoder, self._vision = family, family.decoder(model), vision
        self._loss = RecoveryLoss.of(recipe, match_last=1.0 in settings.hidden_layers)
        self._teacher = _needed_teacher(self._loss, teacher, family.text_config(model.config).vocab_size)
        points = self._teacher.points if self._teacher else LAST_OF_ANSWERS
        self._points = points if kept_layers is None else points.in_student(kept_layers)
        order = _sample_order(recipe, len(samples))
        self.samples_seen, self.samples_to_see = 0, recipe.samples_to_see(len(samples))
        self._num_samples, self._largest_microbatch = len(samples), torch.Size((1, 0))
        self._bad_rows = BadRows("recovery data", len(samples)) if bad_rows is None else bad_rows

        start_distributed()
        self._rank, self._num_workers = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._device, self._dtype = current_device(), compute_dtype(settings.precision)
        self._stored_dtype, self._stored_attention = model.dtype, self._decoder.config._attn_implementation
        self._prepare_teacher(order.num_samples)
        self.trained_params = self._prepare_model()
        self._plan = self._plan_memory()
        worker = (self._rank, self._num_workers, self._device)
        must_have_image = self._num_workers > 1 or recipe.trained == "projector"
        limits = (self._points, must_have_image, self._plan.tokens_per_pass)
        self.microbatches = MicrobatchLoader(order, samples, self._bad_rows, encoder, *worker, *limits)
        self.engine_config = deepspeed_config(settings, self._dtype, self._plan.zero_stage, self._plan.offload)
        self._stage = int(self.engine_config["zero_optimization"]["stage"])
        self.engine: Any = self._start_engine()
        self._average = WeightAverage(self.trained_params.values()) if settings.weight_average else None

    def train_until(self, samples_seen: int) -> dict[str, float]:
        """Train until that many samples have been seen in all.

        Returns:
            Mean of each loss term per position since the last call, unweighted, by the recipe's field; of the terms
            that the recipe weighs and that had a position.

        Raises:
            FloatingPointError: a term is not finite.
            BadData: too many samples can't be used.
        """
        self.model.train()
        for module in self._family.vision(self.model):
            module.eval()
        totals = {name: np.zeros(2) for name in self._loss.weights}
        with self._vision_cached():
            while self.samples_seen < samples_seen:
                for name, sum_and_count in self._step(samples_seen).items():
                    totals[name] += sum_and_count
        self._bad_rows.report()
        return {name: float(total / count) for name, (total, count) in totals.items() if count}

    @contextmanager
    def weights_for_evaluation(self) -> Iterator[PreTrainedModel]:
        """The model in eval mode with adapters merged, and weights averaged if the settings say so.

        Afterwards every weight is as before. Every worker must enter.
        """
        self.model.eval()
        with self._average.swapped_in() if self._average else nullcontext():
            if self._stage == 3:
                model = self._gathered_copy()
                trainable_params.merge_for_good(model)
                self._family.decoder(model).set_attn_implementation(self._stored_attention)
                yield model.eval()
                return
            with trainable_params.merged(self.model), self._attention_as_stored():
                yield self.model

    def changed_weights(self) -> dict[str, torch.Tensor]:
        """The weights that training changes, by name in the pruned model, as `weights_for_evaluation` has them: whole,
        on the CPU. Every worker must call it."""
        names = {name for name in self.trained_params if "lora_" not in name}
        names |= {f"{layer}.weight" for layer in trainable_params.adapted_layers(self.model)}
        with self.weights_for_evaluation() as model:
            found = {name.replace(".base_layer.", "."): param for name, param in model.named_parameters()}
            return {name: found[name].detach().cpu().contiguous().clone() for name in sorted(names)}

    def finished_model(self) -> PreTrainedModel:
        """The trained model, merged, without the engine, in the precision that it came in. It ends training."""
        if self._average is not None:
            self._average.apply()
            self._average = None
        model = self._gathered_copy() if self._stage == 3 else self.model
        self._free_engine()
        self._release_memory()
        for param in model.parameters():
            # ZeRO keeps all in one buffer, which safetensors refuses to write
            param.data = param.data.clone()
            param.requires_grad_(False)
        trainable_params.merge_for_good(model)
        self._family.decoder(model).set_attn_implementation(self._stored_attention)
        if self._plan.checkpointing:
            model.gradient_checkpointing_disable()
        cast_weights(model, self._stored_dtype)
        return model.eval()

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer state and position (see `checkpoint.save`); every worker must call it.

        Raises:
            StorageProblem: on all of several workers, if the storage fails one.
        """
        with self._gathered():
            weights = {name: param.detach().cpu().clone() for name, param in self.trained_params.items()}
        position = self._identity() | {"samples_seen": self.samples_seen}
        with collective_io():
            checkpoint.save(folder, self._rank, self._state(weights), position)

    def restore(self, folder: Path) -> None:
        """Resume from what `save` wrote: losses are then the same, bit by bit, as without the interruption.

        Raises:
            InputError: the folder is no checkpoint, or one of another recipe, ZeRO stage or number of workers.
        """
        state = self._state({})
        position = checkpoint.restore(folder, self._rank, state, self._identity())
        with self._gathered(modify=True), torch.no_grad():
            for name, param in self.trained_params.items():
                param.copy_(state.weights[name])
        self.samples_seen = position["samples_seen"]

    def close(self) -> None:
        """Free the engine and the model; nothing else may be called afterwards."""
        self.microbatches.close()
        self._free_engine()
        del self.model, self._decoder, self.trained_params, self._average
        self._release_memory()

    # Parts of the constructor.

    def _prepare_teacher(self, num_samples: int) -> None:
        if self._teacher:
            with collective_io():
                self._teacher.prepare(num_samples, self._device)

    def _prepare_model(self) -> dict[str, nn.Parameter]:
        """Choose what is trained, and move the model to where it is trained."""
        torch.manual_seed(self.recipe.seed)
        trained = trainable_params.choose_trained(self.model, self._family, self.recipe)
        self.model.to(self._device)
        cast_weights(self.model, self._dtype)
        if self._device.type == "cpu":  # where the backward pass of fused attention takes twice as long
            self._decoder.set_attn_implementation("eager")
        return trained

    def _plan_memory(self) -> MemoryPlan:
        """Fit the trial into the memory that is free on the fullest worker."""
        if self._teacher and self._loss.names("logits", needs_teacher=True):
            self._teacher.head_on(self._device)
        free = torch.tensor([free_bytes(), host_bytes()], dtype=torch.float64, device=self._device)
        if self._num_workers > 1:
            torch.distributed.all_reduce(free, torch.distributed.ReduceOp.MIN)
        in_use = 0 if self._device.type == "cpu" else sum(param.nbytes for param in self.model.parameters())
        need_logits = bool(self._loss.names("logits"))
        needs = needs_of(self.model, self._family, self.trained_params, self._dtype, need_logits)
        device_bytes, machine_bytes = map(int, free.tolist())
        plan = plan_memory(needs, self.settings, device_bytes + in_use, self._num_workers, machine_bytes)
        logger.info("%s: %s", self.recipe.key, plan.describe())
        if plan.checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        return plan

    def _start_engine(self) -> Any:
        assert self.recipe.lr is not None, self.recipe
        student = StudentWithLoss(self.model, self._family, self._loss, self._teacher, self._points)
        return start_engine(student, list(self.trained_params.values()), self.engine_config, self.recipe.lr)

    # Parts of a step.

    def _vision_cached(self) -> AbstractContextManager[None]:
        """Serve the vision tower's outputs from the cache; not under ZeRO 3, where all workers must run the tower."""
        if self._vision is None or self._stage == 3:
            return nullcontext()
        return self._vision.serving(self.model)

    def _step(self, rung: int) -> dict[str, tuple[float, int]]:
        """One optimizer step, not beyond `rung` samples; each term's sum, and how many positions it is of."""
        end = min(rung, self.samples_seen + self.settings.batch_size)
        while (found := self._gradients_if_they_fit(end, rung)) is None:
            self._halve_microbatches()
        for name, (value, _) in found.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} in the step from sample {self.samples_seen} to {end}; lower lr"
                )
        self.engine.step()
        batch_size = end - self.samples_seen
        self.samples_seen = end
        if self._average:
            self._average.update(self.samples_seen, batch_size)
        return found

    def _gradients_if_they_fit(self, end: int, rung: int) -> dict[str, tuple[float, int]] | None:
        """None if memory ran out and smaller microbatches may help; the tensors that the error held are free again."""
        try:
            return self._gradients(end, rung)
        except torch.OutOfMemoryError:
            # Other workers would wait for this one in the middle of a microbatch.
            if self._num_workers > 1 or self._stage == 3 or self._largest_microbatch[0] == 1:
                raise
        return None

    def _gradients(self, end: int, rung: int) -> dict[str, tuple[float, int]]:
        """Accumulate the gradients of the step to `end`; weights and optimizer stay as they are. Returns as `_step`."""
        torch.manual_seed(hash((self.recipe.seed, self.samples_seen, self._rank)) % 2**63)
        self._set_lr(end)
        next_end = min(rung, end + self.settings.batch_size)
        step = self.microbatches.step(self.samples_seen, end, next_end)
        need_teacher = self._loss.names(needs_teacher=True)
        counts = {
            name: step.num_points if name in need_teacher else step.num_answer_tokens for name in self._loss.weights
        }
        self._largest_microbatch = max((batch["input_ids"] for batch, _ in step.microbatches), key=torch.numel).shape
        sums = torch.zeros(len(counts), dtype=torch.float64, device=self._device)
        for index, microbatch in enumerate(step.microbatches):
            sums += self._backward(microbatch, counts, is_last=index == len(step.microbatches) - 1)
        if self._num_workers > 1:
            torch.distributed.all_reduce(sums)
        return {name: (value, counts[name]) for name, value in zip(counts, sums.tolist(), strict=True)}

    def _set_lr(self, end: int) -> None:
        """The learning rate of the step to `end`, by the samples seen in its middle."""
        assert self.recipe.lr is not None, self.recipe
        middle = (self.samples_seen + end) / 2 / max(end, self.samples_to_see)
        factor = lr_factor(self.settings.schedule, middle, self.settings.warmup)
        for group in self.engine.optimizer.param_groups:
            group["lr"] = self.recipe.lr * factor

    def _backward(self, microbatch: Microbatch, counts: Mapping[str, int], is_last: bool) -> torch.Tensor:
        """Add a microbatch's gradients; each term's sum, (terms,) in fp64."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        targets = self._teacher.targets(*microbatch) if self._teacher else None
        sums = self.engine(microbatch.batch, targets)
        # Gradients are averaged over workers, and every worker's share counts by its positions.
        self.engine.backward(self._loss.loss(sums, counts) * self._num_workers)
        progress.step()
        return torch.stack([sums[name].detach().double() for name in counts])

    # Memory.

    def _halve_microbatches(self) -> None:
        """Restart the engine in the state after the last step, with microbatches of half as many tokens."""
        rows, length = self._largest_microbatch
        self.microbatches.max_tokens = rows * length // 2
        logger.warning(
            "%s: out of memory with %d tokens in a microbatch; continues with %d",
            self.recipe.key,
            rows * length,
            self.microbatches.max_tokens,
        )
        stored = [(master.cpu(), _on(moments, "cpu")) for master, moments in master_states(self.engine)]
        self._free_engine()
        self._release_memory()
        self.engine = self._start_engine()
        for (master, moments), (value, others) in zip(master_states(self.engine), stored, strict=True):
            master.data.copy_(value)
            moments.update(_on(others, master.device))

    def _free_engine(self) -> None:
        if self.engine is not None:
            self.engine.destroy()
            self.engine = None
            for param in self.model.parameters():
                param.__dict__.clear()  # the engine's attributes of parameters would keep its buffers alive
                param.grad = None

    def _release_memory(self) -> None:
        """Return what was freed to the device; engines leave reference cycles."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    # Whole weights and their state.

    def _state(self, weights: dict[str, torch.Tensor]) -> checkpoint.RecoveryState:
        average = self._average.values if self._average else []
        return checkpoint.RecoveryState(weights, master_states(self.engine), average)

    def _identity(self) -> dict[str, Any]:
        """What must be equal for a checkpoint to be resumed."""
        return {
            "schema": 1,
            "recipe": self.recipe.key,
            "zero_stage": self._stage,
            "workers": self._num_workers,
            "precision": str(self._dtype).removeprefix("torch."),
            "weight_average": self._average is not None,
            "num_samples": self._num_samples,
            **self.settings.model_dump(mode="json", include=RESUME_INVARIANTS),
        }

    @contextmanager
    def _attention_as_stored(self) -> Iterator[None]:
        """The attention that the model came with, which need not be the fastest to train."""
        training = self._decoder.config._attn_implementation
        self._decoder.set_attn_implementation(self._stored_attention)
        try:
            yield
        finally:
            self._decoder.set_attn_implementation(training)

    def _gathered(self, modify: bool = False) -> Any:
        """Whole parameters on every worker, under ZeRO 3 too; changes are kept if `modify`."""
        if self._stage != 3:
            return nullcontext()
        zero = quiet_deepspeed().zero
        return zero.GatheredParameters(list(self.model.parameters()), modifier_rank=0 if modify else None)

    def _gathered_copy(self) -> PreTrainedModel:
        """A whole plain copy of a partitioned model."""
        # Of its own configuration, in which the kind of attention may differ from training's.
        copied = type(self.model)._from_config(copy.deepcopy(self.model.config), dtype=self._dtype)
        if "lora" in self.recipe.trained:
            trainable_params.choose_trained(copied, self._family, self.recipe)
        copied.to(self._device)
        cast_weights(copied, self._dtype)
        with self._gathered(), torch.no_grad():
            copied.load_state_dict(self.model.state_dict())
        return copied


class StudentWithLoss(nn.Module):
    """What the engine wraps: from a batch to the sums of the loss terms, so that ZeRO sees one forward pass."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        loss: RecoveryLoss,
        teacher: Teacher | None,
        points: DistillationPoints,
    ) -> None:
        """`points` are the student's; `teacher` may be None if no term of `loss` needs it."""
        super().__init__()
        self.model, self._family, self._loss, self._teacher, self._points = model, family, loss, teacher, points
        self._head = language_head(model, family)
        self._vocabulary = int(family.text_config(model.config).vocab_size)

    def forward(self, batch: Batch, targets: torch.Tensor | None) -> dict[str, torch.Tensor]:
        """Each term's sum over the batch (`RecoveryLoss.sums`); `targets` are the teacher's states at the points."""
        states, labels = self._points.states(self.model, self._family, batch), self._points.labels(batch)
        teacher_head = self._teacher.head_on(states.device) if self._teacher else None
        return self._loss.sums(states, labels, self._head, targets, teacher_head, self._vocabulary)


def _needed_teacher(loss: RecoveryLoss, teacher: Teacher | None, vocabulary: int) -> Teacher | None:
    """The teacher if a term needs it, checked; else None."""
    terms = ", ".join(loss.names(needs_teacher=True))
    if not terms:
        return None
    if teacher is None:
        raise InputError(f"{terms}: need the dense model as teacher; set to 0")
    if teacher.vocabulary != vocabulary:
        raise InputError(
            f"teacher: knows {teacher.vocabulary} tokens and the model {vocabulary}; their tokenizers differ, so set "
            f"{terms} to 0, or take the model that this one was pruned from"
        )
    return teacher


def _sample_order(recipe: Recipe, num_samples: int) -> SampleOrder:
    """The order of the samples in the recipe's fraction of `num_samples`."""
    assert recipe.data_fraction is not None, recipe
    num_chosen = round(recipe.data_fraction * num_samples)
    if not num_chosen:
        raise InputError(f"recipe.data_fraction: {recipe.data_fraction:g} of {num_samples} samples is none; raise it")
    return SampleOrder(num_chosen, recipe.seed)


def _on(moments: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """An optimizer's tensors on `device`; its count of steps, a scalar, stays on the CPU."""
    return {name: value.to(device) if value.ndim else value for name, value in moments.items()}
