"""Recovery training: a pruned model, a recipe's losses, and a DeepSpeed engine, up to any number of samples seen."""

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

from raysearch.config.recipe import Recipe
from raysearch.config.settings import RecoverySettings
from raysearch.data.encoding import Batch, Encoder
from raysearch.data.samples import BadRows, Sample
from raysearch.errors import InputError
from raysearch.models import Family
from raysearch.models.vision_cache import VisionCache
from raysearch.recovery import checkpoint, trainable_params
from raysearch.recovery.batching import Microbatches
from raysearch.recovery.deepspeed_engine import (
    collective_io,
    compute_dtype,
    current_device,
    deepspeed_config,
    local,
    master_states,
    quiet_deepspeed,
    start_distributed,
    start_engine,
)
from raysearch.recovery.hidden_states import LAST_OF_ANSWERS, DistillationPoints
from raysearch.recovery.losses import LossTerms
from raysearch.recovery.memory_planner import MemoryPlan, free_bytes, host_bytes, needs_of, plan_memory
from raysearch.recovery.schedule import SampleOrder, average_decay, lr_factor
from raysearch.recovery.teacher import Teacher, language_head

__all__ = ["RecoveryTrainer", "start_distributed"]

RESUME_INVARIANTS = {
    "batch_size",
    "max_length",
    "hidden_layers",
    "kd_tokens",
    "schedule",
    "warmup",
    "grad_clip",
    "deepspeed",
}
"""Settings under which a trial that goes on would not be the one that was interrupted."""

logger = logging.getLogger(__name__)


class _Student(nn.Module):
    """What the engine wraps: a batch in, the loss terms' sums out, so that ZeRO sees one forward pass."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        terms: LossTerms,
        teacher: Teacher | None,
        compared: DistillationPoints,
    ) -> None:
        super().__init__()
        self.model, self._family, self._terms, self._teacher = model, family, terms, teacher
        self._compared = compared
        self._head = language_head(model, family)
        self._vocabulary = int(family.text_config(model.config).vocab_size)

    def forward(self, batch: Batch, targets: torch.Tensor | None) -> dict[str, torch.Tensor]:
        states, labels = self._compared.states(self.model, self._family, batch), self._compared.labels(batch)
        teacher_head = self._teacher.head_on(states.device) if self._teacher else None
        return self._terms.sums(states, labels, self._head, targets, teacher_head, self._vocabulary)


class RecoveryTrainer:
    """Trains one pruned model. Every worker of a trial makes its own; they share the steps' samples among them.

    Nothing but the samples seen decides what a step does, so a run that is saved and restored, or that pauses at
    rungs, is the run without. A rung between two steps ends a batch early, in every run with the same rungs.
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
            kept_layers: which of the dense decoder's layers the model has; left out, all of them.
            bad_rows: takes the samples that can't be used, of all trials on these samples; left out, of this one.
            vision: answers for the vision tower; left out, the tower runs at every step.

        Raises:
            InputError: the recipe trains nothing of this model, its fraction holds no sample, or the teacher is
                missing or speaks of other tokens.
        """
        assert recipe.trained != "nothing", recipe
        assert recipe.data_fraction is not None, recipe
        assert recipe.lr is not None, recipe
        self.recipe, self.settings = recipe, settings
        self._terms = LossTerms.of(recipe, match_last=1.0 in settings.hidden_layers)
        self._teacher = teacher if self._terms.need_teacher else None
        if self._terms.need_teacher:
            _check_teacher(teacher, family.text_config(model.config).vocab_size)
        compared = self._teacher.compared if self._teacher else LAST_OF_ANSWERS
        self._compared = compared if kept_layers is None else compared.in_student(kept_layers)
        num_samples = round(recipe.data_fraction * len(samples))
        if not num_samples:
            raise InputError(
                f"recipe.data_fraction: {recipe.data_fraction:g} of {len(samples)} samples is none; raise it"
            )
        order = SampleOrder(num_samples, recipe.seed)
        self.samples_seen, self.samples_to_see = 0, recipe.samples_to_see(len(samples))
        self._num_samples, self._largest_pass = len(samples), torch.Size((1, 0))

        start_distributed()
        self._rank, self._world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._device = current_device()
        self._model, self._family, self._vision = model, family, vision
        self._adapters = "lora" in recipe.trained
        self._lr = recipe.lr
        self._decoder, self._stored_dtype = family.decoder(model), model.dtype
        self._attention = self._decoder.config._attn_implementation
        if self._teacher:
            with collective_io():
                self._teacher.prepare(num_samples, self._device)
        self._prepare_model()
        plan = self._plan()
        image_in_every_pass = self._world > 1 or recipe.trained == "projector"
        workers = (self._rank, self._world, self._device)
        how = (self._compared, image_in_every_pass, plan.tokens_per_pass)
        self._bad_rows = BadRows("recovery data", len(samples)) if bad_rows is None else bad_rows
        self._passes = Microbatches(order, samples, self._bad_rows, encoder, *workers, *how)
        self._config = deepspeed_config(settings, self._dtype, plan.zero_stage, plan.offload)
        self._stage = int(self._config["zero_optimization"]["stage"])
        self._engine: Any = self._started_engine()
        self._average = [value.float().clone() for value in self._locals()] if settings.weight_average else None

    def _prepare_model(self) -> None:
        torch.manual_seed(self.recipe.seed)
        self._dtype = compute_dtype(self.settings.precision)
        self._trained = trainable_params.choose_trained(self._model, self._family, self.recipe)
        self._model.to(device=self._device, dtype=self._dtype)
        if self._device.type == "cpu":  # where the backward pass of fused attention takes twice as long
            self._decoder.set_attn_implementation("eager")

    def _plan(self) -> MemoryPlan:
        """Fit the trial into the memory that is free on the fullest worker."""
        if self._teacher and "logits_kd" in self._terms.weights:
            self._teacher.head_on(self._device)
        free = torch.tensor([free_bytes(), host_bytes()], dtype=torch.float64, device=self._device)
        if self._world > 1:
            torch.distributed.all_reduce(free, torch.distributed.ReduceOp.MIN)
        already = 0 if self._device.type == "cpu" else sum(param.nbytes for param in self._model.parameters())
        needs = needs_of(self._model, self._family, self._trained, self._dtype, self._terms.need_logits)
        device_bytes, machine_bytes = map(int, free.tolist())
        plan = plan_memory(needs, self.settings, device_bytes + already, self._world, machine_bytes)
        logger.info("%s: %s", self.recipe.key, plan.describe())
        self._checkpointing = plan.checkpointing
        if plan.checkpointing:
            self._model.gradient_checkpointing_enable({"use_reentrant": False})
        return plan

    def _started_engine(self) -> Any:
        student = _Student(self._model, self._family, self._terms, self._teacher, self._compared)
        return start_engine(student, list(self._trained.values()), self._config, self._lr)

    def train_until(self, samples_seen: int) -> dict[str, float]:
        """Train until that many samples have been seen in all.

        Returns:
            Mean of each loss term per token since the last call, unweighted: `sft`, `logits_kd`, `hidden_kd`, as far as
            the recipe weighs them.

        Raises:
            FloatingPointError: a term is not finite.
            BadData: too many samples can't be used.
        """
        self._model.train()
        for module in self._family.vision(self._model):
            module.eval()
        totals = {name: np.zeros(2) for name in self._terms.weights}
        with self._vision_served():
            while self.samples_seen < samples_seen:
                for name, found in self._step(samples_seen).items():
                    totals[name] += found
        self._bad_rows.report()
        return {name: float(total / count) for name, (total, count) in totals.items() if count}

    def _vision_served(self) -> AbstractContextManager[None]:
        """Under ZeRO 3 the tower is in parts, which workers gather in step: there all of them run it."""
        if self._vision is None or self._stage == 3:
            return nullcontext()
        return self._vision.serving(self._model)

    def _step(self, rung: int) -> dict[str, tuple[float, int]]:
        """One optimizer step, not beyond `rung` samples; each term's sum, and how many tokens it is of."""
        end = min(rung, self.samples_seen + self.settings.batch_size)
        while (found := self._gradients_if_they_fit(end, rung)) is None:
            self._halve_passes()
        for name, (value, _) in found.items():
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"{name} is {value} in the step from sample {self.samples_seen} to {end}; lower lr"
                )
        self._engine.step()
        size = end - self.samples_seen
        self.samples_seen = end
        self._join_average(size)
        return found

    def _gradients_if_they_fit(self, end: int, rung: int) -> dict[str, tuple[float, int]] | None:
        """None if memory ran out and smaller passes may help; the tensors that the error held are free again."""
        try:
            return self._gradients(end, rung)
        except torch.OutOfMemoryError:
            if not self._can_halve_passes():
                raise
        return None

    def _gradients(self, end: int, rung: int) -> dict[str, tuple[float, int]]:
        """Of the step to `end`; weights and optimizer stay as they are. Returns as `_step`."""
        torch.manual_seed(hash((self.recipe.seed, self.samples_seen, self._rank)) % 2**63)
        middle = (self.samples_seen + end) / 2 / max(end, self.samples_to_see)
        factor = lr_factor(self.settings.schedule, middle, self.settings.warmup)
        for group in self._engine.optimizer.param_groups:
            group["lr"] = self._lr * factor
        next_end = min(rung, end + self.settings.batch_size)
        passes, num_answers, num_compared = self._passes.of_step(self.samples_seen, end, next_end)
        counts = {name: num_answers if name == "sft" else num_compared for name in self._terms.weights}
        self._largest_pass = max((batch["input_ids"] for batch, _ in passes), key=torch.numel).shape
        sums = torch.zeros(len(self._terms.weights), dtype=torch.float64, device=self._device)
        for index, (batch, places) in enumerate(passes):
            sums += self._pass(batch, places, counts, is_last=index == len(passes) - 1)
        if self._world > 1:
            torch.distributed.all_reduce(sums)
        return {name: (value, counts[name]) for name, value in zip(counts, sums.tolist(), strict=True)}

    def _can_halve_passes(self) -> bool:
        """Whether smaller passes are possible here. Other workers would wait for this one in the middle of a pass."""
        return self._world == 1 and self._stage < 3 and self._largest_pass[0] > 1

    def _halve_passes(self) -> None:
        """Start the engine anew, as it was after the last step, with passes of half as many tokens."""
        rows, length = self._largest_pass
        self._passes.max_tokens = rows * length // 2
        logger.warning(
            "%s: out of memory with %d tokens in a pass; goes on with %d",
            self.recipe.key,
            rows * length,
            self._passes.max_tokens,
        )
        kept = [(master.cpu(), _on(moments, "cpu")) for master, moments in master_states(self._engine)]
        self._free_engine()
        self._collect()
        self._engine = self._started_engine()
        for (master, moments), (value, others) in zip(master_states(self._engine), kept, strict=True):
            master.data.copy_(value)
            moments.update(_on(others, master.device))

    def _pass(self, batch: Batch, places: Sequence[int], counts: Mapping[str, int], is_last: bool) -> torch.Tensor:
        self._engine.set_gradient_accumulation_boundary(is_last)
        targets = self._teacher.targets(batch, places) if self._teacher else None
        sums = self._engine(batch, targets)
        # Gradients are averaged over workers, and every worker's share counts by its tokens.
        self._engine.backward(self._terms.loss(sums, counts) * self._world)
        return torch.stack([sums[name].detach().double() for name in self._terms.weights])

    @contextmanager
    def weights_for_evaluation(self) -> Iterator[PreTrainedModel]:
        """The model in eval mode, ready to answer: adapters merged, weights averaged if the settings say so.

        Afterwards training goes on as if nothing had happened. Every worker must enter.
        """
        self._model.eval()
        with self._averaged():
            if self._stage == 3:
                model = self._gathered_copy()
                trainable_params.merge_for_good(model)
                yield model.eval()
                return
            with trainable_params.merged(self._model), self._own_attention():
                yield self._model

    def finished_model(self) -> PreTrainedModel:
        """The trained model, plain, merged, in the precision that it came with. Training has ended."""
        if self._average is not None:
            _copy_all(self._average, self._locals())
            self._average = None
        model = self._gathered_copy() if self._stage == 3 else self._model
        self._free_engine()
        self._collect()
        for param in model.parameters():
            # ZeRO keeps all in one buffer, which safetensors refuses to write
            param.data = param.data.clone()
            param.requires_grad_(False)
        trainable_params.merge_for_good(model)
        self._family.decoder(model).set_attn_implementation(self._attention)
        if self._checkpointing:
            model.gradient_checkpointing_disable()
        return model.to(self._stored_dtype).eval()

    def save(self, folder: Path) -> None:
        """Write trained weights, optimizer state and position (see `checkpoint.save`); every worker must call it.

        Raises:
            StorageProblem: on all of several workers, if the storage fails one.
        """
        with self._gathered():
            weights = {name: param.detach().cpu().clone() for name, param in self._trained.items()}
        state = checkpoint.Saved(weights, master_states(self._engine), self._average or [])
        position = self._identity() | {"samples_seen": self.samples_seen}
        with collective_io():
            checkpoint.save(folder, self._rank, state, position)

    def restore(self, folder: Path) -> None:
        """Go on from what `save` wrote: losses are then the same, bit by bit, as without the break.

        Raises:
            InputError: the folder is no checkpoint, or one of another recipe, ZeRO stage or number of workers.
        """
        state = checkpoint.Saved({}, master_states(self._engine), self._average or [])
        position = checkpoint.restore(folder, self._rank, state, self._identity())
        with self._gathered(modify=True), torch.no_grad():
            for name, param in self._trained.items():
                param.copy_(state.weights[name])
        self.samples_seen = position["samples_seen"]

    def close(self) -> None:
        """Free the engine and the model; nothing else may be called afterwards."""
        self._passes.close()
        self._free_engine()
        del self._model, self._decoder, self._trained, self._average
        self._collect()

    def _identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to fit."""
        return {
            "schema": 1,
            "recipe": self.recipe.key,
            "zero_stage": self._stage,
            "workers": self._world,
            "precision": str(self._dtype).removeprefix("torch."),
            "weight_average": self._average is not None,
            "num_samples": self._num_samples,
            **self.settings.model_dump(mode="json", include=RESUME_INVARIANTS),
        }

    def _free_engine(self) -> None:
        if self._engine is not None:
            self._engine.destroy()
            self._engine = None
            for param in self._model.parameters():
                param.__dict__.clear()  # the engine's notes on its parameters would keep its buffers alive
                param.grad = None

    def _collect(self) -> None:
        """Give back what was freed; engines leave cycles."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _locals(self) -> list[torch.Tensor]:
        return [local(param) for param in self._trained.values()]

    def _join_average(self, batch_size: int) -> None:
        if self._average is not None:
            decay = average_decay(self.samples_seen, batch_size)
            for kept, now in zip(self._average, self._locals(), strict=True):
                kept.lerp_(now.float(), 1 - decay)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The average in the place of the weights for a while."""
        if self._average is None:
            yield
            return
        before = [value.clone() for value in self._locals()]
        _copy_all(self._average, self._locals())
        try:
            yield
        finally:
            _copy_all(before, self._locals())

    @contextmanager
    def _own_attention(self) -> Iterator[None]:
        """The attention that the model came with, which need not be the quickest to train."""
        training = self._decoder.config._attn_implementation
        self._decoder.set_attn_implementation(self._attention)
        try:
            yield
        finally:
            self._decoder.set_attn_implementation(training)

    def _gathered(self, modify: bool = False) -> Any:
        """Whole parameters on every worker, under ZeRO 3 too; changes are kept if `modify`."""
        if self._stage != 3:
            return nullcontext()
        zero = quiet_deepspeed().zero
        return zero.GatheredParameters(list(self._model.parameters()), modifier_rank=0 if modify else None)

    def _gathered_copy(self) -> PreTrainedModel:
        """A whole plain copy of a partitioned model."""
        copied = type(self._model)._from_config(self._model.config, dtype=self._dtype)
        if self._adapters:
            trainable_params.choose_trained(copied, self._family, self.recipe)
        copied.to(device=self._device, dtype=self._dtype)
        with self._gathered(), torch.no_grad():
            copied.load_state_dict(self._model.state_dict())
        return copied


def _check_teacher(teacher: Teacher | None, vocabulary: int) -> None:
    if teacher is None:
        raise InputError("logits_kd, hidden_kd: need the dense model as teacher; set both to 0")
    if teacher.vocabulary != vocabulary:
        raise InputError(
            f"teacher: knows {teacher.vocabulary} tokens and the model {vocabulary}; their tokenizers differ, so set "
            "logits_kd and hidden_kd to 0, or take the model that this one was pruned from"
        )


def _copy_all(source: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> None:
    for old, new in zip(source, target, strict=True):
        new.copy_(old)


def _on(moments: Mapping[str, Any], device: torch.device | str) -> dict[str, Any]:
    """An optimizer's tensors on `device`; its count of steps, a scalar, stays on the CPU."""
    return {name: value.to(device) if value.ndim else value for name, value in moments.items()}
