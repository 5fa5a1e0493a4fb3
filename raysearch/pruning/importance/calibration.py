"""Check calibration batches, and mask the tokens that count."""

from collections.abc import Iterable, Iterator, Mapping

import torch
from transformers import PreTrainedModel

from raysearch.errors import InputError
from raysearch.models import family_for

TOKENS = ("all", "image", "text", "answer", "last")
Batch = dict[str, torch.Tensor]


def checked_batches(
    model: PreTrainedModel, batches: Iterable[Mapping[str, torch.Tensor]], criterion: str, needs_labels: bool
) -> Iterator[Batch]:
    """Check batches one by one and move them to the model's device.

    Raises:
        InputError: no batch at all, an LVLM's batch without images, or a batch without answer tokens that needs some.
    """
    multimodal, number = family_for(model).is_multimodal, -1
    for number, batch in enumerate(batches):
        if multimodal and not any(name.startswith("pixel_values") for name in batch):
            raise InputError(
                f"calibration batch {number}: has no images, and {model.config.model_type} is a vision-language model; "
                "calibrate on samples with images"
            )
        labels = batch.get("labels")
        if needs_labels and (labels is None or not (labels != -100).any()):
            raise InputError(
                f"calibration batch {number}: has no answer tokens in labels, which {criterion} needs; give samples "
                "with answers"
            )
        yield {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    if number < 0:
        raise InputError(f"calibration: has no samples, and {criterion} needs some; give at least one")


def token_mask(model: PreTrainedModel, batch: Batch, tokens: str) -> torch.Tensor:
    """(batch, seq) bool: the tokens of a kind of `TOKENS`, padding excluded."""
    ids = batch["input_ids"]
    mask = batch.get("attention_mask")
    real = mask.bool() if mask is not None else torch.ones_like(ids, dtype=torch.bool)
    if tokens == "all":
        return real
    if tokens == "last":
        positions = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        last = positions.masked_fill(~real, -1).amax(-1, keepdim=True)
        return positions == last
    if tokens == "answer":
        return real & (batch["labels"] != -100)
    image_id = family_for(model).image_token_id(model.config)
    image = ids == image_id if image_id is not None else torch.zeros_like(real)
    return real & (image if tokens == "image" else ~image)
