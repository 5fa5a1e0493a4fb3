"""Which parameters recovery trains: the projector, adapters on the decoder, the decoder; never the vision tower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel

from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.models import Family

ALPHA_PER_RANK = 2
"""LoRA's alpha over its rank, as LLaVA's own recipe has it (rank 128, alpha 256)."""


def choose_trained(model: PreTrainedModel, family: Family, recipe: Recipe) -> dict[str, nn.Parameter]:
    """Freeze everything but what `recipe.trained` names, adding adapters if it names them.

    Adapters are added to every linear layer of the decoder but the language head; they start as no change, and are
    drawn from torch's generator.

    Returns:
        The trained parameters by name, in the order of the model.

    Raises:
        InputError: the model has no such part.
    """
    parts = recipe.trained.split("+")
    model.requires_grad_(False)
    chosen: list[nn.Module] = []
    if "projector" in parts:
        chosen += family.projector(model)
    if "decoder" in parts:
        chosen += [family.decoder(model), family.lm_head(model)]
    for module in chosen:
        module.requires_grad_(True)
    if "lora" in parts:
        assert recipe.lora_rank is not None, recipe
        _add_adapters(model, family, recipe.lora_rank)
    for module in family.vision(model):
        module.requires_grad_(False)
    found = {name: param for name, param in model.named_parameters() if param.requires_grad}
    if not found:
        raise InputError(f"trained: {recipe.trained}: {family.model_type} has no such part; choose another")
    return found


def _add_adapters(model: PreTrainedModel, family: Family, rank: int) -> None:
    import peft

    prefix = family.layers_name(model)
    linear = [
        f"{prefix}.{name}"
        for name, module in family.decoder(model).layers.named_modules()
        if isinstance(module, nn.Linear)
    ]
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    config = peft.LoraConfig(r=rank, lora_alpha=ALPHA_PER_RANK * rank, lora_dropout=0.0, target_modules=linear)
    peft.inject_adapter_in_model(config, model)
    for name, param in model.named_parameters():  # peft freezes all but its own
        param.requires_grad_("lora_" in name or name in trained)


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Adapters merged into their layers; afterwards every bit is as before."""
    layers = adapted_layers(model)
    before = [layer.get_base_layer().weight.detach().clone() for layer in layers.values()]
    _merge(layers)
    try:
        yield
    finally:
        for layer, weight in zip(layers.values(), before, strict=True):
            layer.get_base_layer().weight.data.copy_(weight)
            layer.merged_adapters.clear()


def merge_for_good(model: nn.Module) -> None:
    """Merge adapters into their layers and remove them from the model."""
    layers = adapted_layers(model)
    _merge(layers)
    for name, layer in layers.items():
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config


def adapted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers with an adapter, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


@torch.no_grad()
def _merge(layers: dict[str, nn.Module]) -> None:
    for layer in layers.values():
        layer.merge()
