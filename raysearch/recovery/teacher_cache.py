"""The dense model's states on disk: computed once per study, by the worker that needs them first, read by all.

Shard i holds the states of `SHARD_SAMPLES` consecutive samples at the distillation points, in bf16, with a checksum and
a digest of all that the states depend on; a shard that is truncated, damaged or of another digest is computed again.
Files are replaced atomically, so any number of processes and machines may read and write one folder. Writers take
missing shards in random order and check again before each; if two compute the same shard, the later replaces an equal
file.
"""

import hashlib
import itertools
import json
import logging
import random
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from raysearch import progress
from raysearch.data.bad_rows import BadRow
from raysearch.data.encoding import Encoded, Encoder
from raysearch.data.pictures import Picture
from raysearch.data.samples import Sample
from raysearch.errors import InputError
from raysearch.files import write_tensors
from raysearch.models import Family
from raysearch.models.precision import fast_dtype, in_fast_precision
from raysearch.recovery.deepspeed_engine import on_device
from raysearch.recovery.hidden_states import LAST_OF_ANSWERS, DistillationPoints
from raysearch.recovery.schedule import group_by_tokens
from raysearch.recovery.teacher import Teacher

SHARD_SAMPLES = 128
TOKENS_PER_PASS = 8192
GB = 10**9
_LAYOUT = "states, bf16, 2"
_VALUES_PER_TENSOR = 1024

logger = logging.getLogger(__name__)


class CachedTeacher(Teacher):
    """A teacher that reads its states from files, so that a trial needs no dense model on its device."""

    def __init__(
        self,
        model: PreTrainedModel,
        family: Family,
        encoder: Encoder,
        samples: Sequence[Sample],
        folder: Path,
        quota_gb: float,
        largest_fraction: float = 1.0,
        points: DistillationPoints = LAST_OF_ANSWERS,
    ) -> None:
        """Use the cache in `folder`; nothing is computed yet.

        Args:
            samples: the whole data set, in the order in which fractions take it.
            quota_gb: bound on the states of the largest fraction, in 10^9 bytes.
            largest_fraction: of the samples, that any trial will need.
        """
        super().__init__(model, family, points)
        self._encoder, self._samples = encoder, samples
        self._folder, self._quota_bytes = folder, quota_gb * GB
        self._num_shards = _num_shards(max(1, round(largest_fraction * len(samples))))
        self._shards: dict[int, Sequence[torch.Tensor]] = {}
        """States of each sample of the open shards, memory-mapped, so that a machine's processes share them."""

    def prepare(self, num_samples: int, device: torch.device) -> None:
        """Open the states of the first `num_samples` samples; those that are missing are computed on `device`.

        Raises:
            InputError: the states would take more than the quota, or than the disk has left.
        """
        missing = [i for i in range(_num_shards(num_samples)) if not self._open(i)]
        if not missing:
            return
        random.SystemRandom().shuffle(missing)
        _ = self._common_key  # of the model as it is stored, not in the precision that it is computed in
        with on_device(self.model, device), in_fast_precision(self.model):
            for index in missing:
                if not self._open(index):
                    self._write(index)

    def targets(self, batch: Mapping[str, torch.Tensor], sample_indices: Sequence[int]) -> torch.Tensor:
        """As `Teacher.targets`, in the precision of `head_on`; the samples must have been prepared."""
        found = [self._shards[i // SHARD_SAMPLES][i % SHARD_SAMPLES] for i in sample_indices if i >= 0]
        states = torch.cat([self._no_states(), *found])
        assert len(states) == int(self.points.positions(batch).sum()), (len(states), sample_indices)
        return states.to(batch["labels"].device, fast_dtype(self.model.dtype, batch["labels"].device))

    def _no_states(self) -> torch.Tensor:
        return torch.empty(0, len(self.points.layers) + 1, self.hidden, dtype=torch.bfloat16)

    def _path(self, index: int) -> Path:
        return self._folder / f"states-{index:05}.safetensors"

    def _open(self, index: int) -> bool:
        """Open a shard; whether it is there and valid."""
        if index in self._shards:
            return True
        path = self._path(index)
        if not path.exists():
            return False
        try:
            with safe_open(path, "pt") as file:
                header = file.metadata() or {}
                states, ends = file.get_tensor("states"), file.get_tensor("ends")
            wrong = "damaged, or of another model or data"
        except (OSError, SafetensorError) as error:
            header, wrong = {}, f"can't be read ({str(error).splitlines()[0]})"
        if not header or header != {"key": self.shard_key(index), "checksum": _checksum(states, ends)}:
            logger.warning("%s: %s; computed again", path, wrong)
            path.unlink(missing_ok=True)  # another process may just have replaced it; it is then computed once more
            return False
        self._shards[index] = states.split(ends.diff(prepend=ends.new_zeros(1)).tolist())
        return True

    def _write(self, index: int) -> None:
        parts = self._computed(self._samples_of(index))
        states = torch.cat(parts)
        ends = torch.tensor(list(itertools.accumulate(map(len, parts))))
        self._check_space(states.nbytes)
        header = {"key": self.shard_key(index), "checksum": _checksum(states, ends)}
        write_tensors(self._path(index), {"states": states, "ends": ends}, header)
        assert self._open(index), self._path(index)

    @torch.no_grad()
    def _computed(self, samples: Iterable[Sample]) -> list[torch.Tensor]:
        """States of every sample, (n, states per position, hidden) each; n is 0 for one that can't be used."""
        parts: list[torch.Tensor] = []
        usable: list[tuple[int, Encoded]] = []
        for place, sample in enumerate(samples):
            parts.append(self._no_states())
            with suppress(BadRow):
                usable.append((place, self._encoder.encode(sample)))
        for group in group_by_tokens([len(row["input_ids"]) for _, row in usable], TOKENS_PER_PASS):
            progress.step()
            chosen = [usable[index] for index in group]
            batch = self._encoder.collate([row for _, row in chosen])
            batch = {key: value.to(self.model.device) for key, value in batch.items()}
            states = self.points.states(self.model, self._family, batch).to("cpu", torch.bfloat16)
            counts = [self.points.num_positions(row) for _, row in chosen]
            for (place, _), own in zip(chosen, states.split(counts), strict=True):
                parts[place] = own
        return parts

    def _check_space(self, num_bytes: int) -> None:
        """Extrapolate the whole cache's size from the existing shards and the next one's `num_bytes`."""
        sizes = [path.stat().st_size for path in self._folder.glob("states-*.safetensors")]
        needed = (sum(sizes) + num_bytes) / (len(sizes) + 1) * max(self._num_shards, len(sizes) + 1)
        existing = next(path for path in (self._folder, *self._folder.parents) if path.exists())
        free = sum(sizes) + shutil.disk_usage(existing).free
        if needed > min(self._quota_bytes, free):
            raise InputError(
                f"{self._folder}: the teacher's states take about {needed / GB:.3g} GB; recovery.teacher_quota_gb "
                f"allows {self._quota_bytes / GB:.3g} and the disk {free / GB:.3g}; raise it, lower "
                "recipe.data_fraction, or set recovery.teacher: online"
            )

    def _samples_of(self, index: int) -> Iterator[Sample]:
        start = index * SHARD_SAMPLES
        return (self._samples[i] for i in range(start, min(start + SHARD_SAMPLES, len(self._samples))))

    def shard_key(self, index: int) -> str:
        """Digest of what a shard's states depend on: model, processor, distillation points and samples."""
        digest = hashlib.blake2b(self._common_key, digest_size=16)
        for sample in self._samples_of(index):
            digest.update(json.dumps([sample.id, sample.messages]).encode())
            for image in sample.images:
                digest.update(_image_identity(image))
        return digest.hexdigest()

    @cached_property
    def _common_key(self) -> bytes:
        """Digest of model (its configuration and some values of every tensor), processor and distillation points."""
        digest = hashlib.blake2b(f"{_LAYOUT} {self.points}".encode())
        digest.update(self.model.config.to_json_string().encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            values = tensor.detach().flatten()[:: max(1, tensor.numel() // _VALUES_PER_TENSOR)]
            digest.update(values.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        processor = self._encoder.processor
        image_processor = getattr(processor, "image_processor", None)
        made = [str(processor.chat_template), self._encoder.max_length, self._encoder.tokenizer.get_vocab()]
        digest.update(json.dumps(made, sort_keys=True).encode())
        digest.update(image_processor.to_json_string().encode() if image_processor else b"")
        return digest.digest()


def _num_shards(num_samples: int) -> int:
    return -(-num_samples // SHARD_SAMPLES)


def _image_identity(image: Picture) -> bytes:
    """Bytes that differ between images: pixels, the file's bytes, or its name and size."""
    if isinstance(image, Image.Image):
        return str(image.size).encode() + image.tobytes()
    if isinstance(image, bytes):
        return image
    return f"{image.name} {image.stat().st_size if image.exists() else 'missing'}".encode()


def _checksum(states: torch.Tensor, ends: torch.Tensor) -> str:
    return f"{zlib.crc32(_bytes_of(states), zlib.crc32(_bytes_of(ends))):08x}"


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.contiguous().view(torch.uint8).numpy()).cast("B")
