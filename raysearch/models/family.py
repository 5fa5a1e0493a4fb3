"""A family: where an architecture of transformers keeps its decoder, projector, vision tower and head.

Known families are rows of `known_families`. The parts of an architecture without a row are found by structure: the
decoder has the text configuration's layers, the tower is the largest stack of layers beside it, and the projector is
what maps to the decoder's hidden size. Pruning needs the decoder alone, training also the other two.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.errors import InputError
from raysearch.models.known_families import KNOWN_FAMILIES
from raysearch.models.transformers_classes import empty_model

FINAL_NORM_NAMES = ("norm", "final_layernorm", "final_layer_norm", "ln_f")
WHERE_TO_ADD = 'add a row to raysearch/models/known_families.py (CONTRIBUTING.md, "Add a model family")'


@dataclass(frozen=True)
class Family:
    """The parts of one architecture; paths are dotted, from the model with the language head.

    Attributes:
        model_type: of the configuration, as transformers writes it.
        decoder_path: the module with `layers` and the final norm; empty means `get_decoder()`.
        vision_paths: the vision tower, never pruned or trained, without the projector's parts.
        projector_paths: the modules that map image features to the decoder's hidden size.
        is_multimodal: False for a plain causal language model.
    """

    model_type: str
    decoder_path: str = ""
    vision_paths: tuple[str, ...] = ()
    projector_paths: tuple[str, ...] = ()
    is_multimodal: bool = True

    def text_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """The decoder's own configuration; the configuration itself for a plain language model."""
        return config.get_text_config(decoder=True)

    def decoder(self, model: PreTrainedModel) -> nn.Module:
        """The decoder: `.layers` and the final norm (see `final_norm`).

        Raises:
            InputError: no such part.
        """
        if self.decoder_path:
            return self._part(model, "decoder", self.decoder_path)
        text_config = self.text_config(model.config)
        candidates = [model.get_decoder(), *model.modules()]
        for found in candidates:
            layers = getattr(found, "layers", None)
            if isinstance(layers, nn.ModuleList) and getattr(found, "config", None) is text_config and len(layers):
                return found
        raise self._not_found(model, "decoder", "a module with the text configuration and its layers")

    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm between the last decoder layer and the language head."""
        decoder = self.decoder(model)
        for name in FINAL_NORM_NAMES:
            if isinstance(getattr(decoder, name, None), nn.Module):
                return getattr(decoder, name)
        raise self._not_found(model, "final norm", ", ".join(FINAL_NORM_NAMES))

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        """The vision tower's modules; empty for a plain language model.

        Raises:
            InputError: an architecture without a row, whose tower is not found.
        """
        return self._parts(model, "vision tower", self.vision_paths)

    def projector(self, model: PreTrainedModel) -> list[nn.Module]:
        """The projector's modules; empty for a plain language model.

        Raises:
            InputError: an architecture without a row, whose projector is not found.
        """
        return self._parts(model, "projector", self.projector_paths)

    def lm_head(self, model: PreTrainedModel) -> nn.Module:
        """The output embedding, from the normalised hidden state to logits."""
        head = model.get_output_embeddings()
        if head is None:
            raise self._not_found(model, "language head", "get_output_embeddings()")
        return head

    def image_token_id(self, config: PretrainedConfig) -> int | None:
        """The token id of one image feature in `input_ids`; None for a plain language model."""
        for name in ("image_token_id", "image_token_index"):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
        return None

    def layers_name(self, model: PreTrainedModel) -> str:
        """Dotted name of the decoder's layer list inside `model`."""
        wanted = self.decoder(model).layers
        return next(name for name, module in model.named_modules() if module is wanted)

    def _parts(self, model: nn.Module, what: str, paths: Sequence[str]) -> list[nn.Module]:
        if self.is_multimodal and not paths:
            raise self._not_found(model, what, "modules beside the decoder")
        return [self._part(model, what, path) for path in paths]

    def _part(self, model: nn.Module, what: str, path: str) -> nn.Module:
        try:
            return model.get_submodule(path)
        except AttributeError:
            raise self._not_found(model, what, path) from None

    def _not_found(self, model: nn.Module, what: str, looked_for: str) -> InputError:
        known = ", ".join(sorted(KNOWN_FAMILIES))
        return InputError(
            f"{type(model).__name__} ({self.model_type}): {what} not found, looked for {looked_for}; "
            f"known families: {known}; {WHERE_TO_ADD}"
        )


def family_for(model_or_config: PreTrainedModel | PretrainedConfig) -> Family:
    """The family of a model or of its configuration.

    Parts of an architecture without a row are found on the model; given a configuration alone, on an empty model made
    from it.

    Raises:
        InputError: it has no decoder of the known form.
    """
    config = model_or_config if isinstance(model_or_config, PretrainedConfig) else model_or_config.config
    if config.model_type in KNOWN_FAMILIES:
        return Family(config.model_type, **KNOWN_FAMILIES[config.model_type])
    if config.get_text_config(decoder=True) is config and getattr(config, "vision_config", None) is None:
        return Family(config.model_type, is_multimodal=False)
    key = type(config).__name__ + config.to_json_string(use_diff=False)
    if key not in _FOUND:
        is_config = isinstance(model_or_config, PretrainedConfig)
        _FOUND[key] = _by_structure(empty_model(copy.deepcopy(config)) if is_config else model_or_config)
    return _FOUND[key]


_FOUND: dict[str, Family] = {}
"""Families of architectures without a row, by configuration."""


def _by_structure(model: PreTrainedModel) -> Family:
    family = Family(model.config.model_type)
    decoder = family.decoder(model)
    hidden_size = int(family.text_config(model.config).hidden_size)
    beside = _beside(model, decoder, model.get_output_embeddings())
    stacks = {name: _num_params(part) for name, part in beside.items() if _stack(part)}
    if not stacks:
        return family
    tower = max(stacks, key=lambda name: stacks[name])
    projectors = [name for name, part in beside.items() if name != tower and _maps_to(part, hidden_size)]
    if projectors:
        return Family(family.model_type, vision_paths=(tower,), projector_paths=tuple(projectors))
    inside = {f"{tower}.{name}": part for name, part in beside[tower].named_children() if _num_params(part)}
    blocks = max(
        (name for name in inside if _stack(inside[name])), key=lambda name: _num_params(inside[name]), default=""
    )
    behind = list(inside)[list(inside).index(blocks) + 1 :] if blocks else []
    projectors = [name for name in behind if _maps_to(inside[name], hidden_size)]
    towers = [name for name in inside if name not in projectors] if projectors else [tower]
    return Family(family.model_type, vision_paths=tuple(towers), projector_paths=tuple(projectors))


def _beside(model: nn.Module, decoder: nn.Module, head: nn.Module | None, prefix: str = "") -> dict[str, nn.Module]:
    """The outermost modules with parameters that neither hold nor are the decoder or the head, by dotted name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_children():
        if any(inner is decoder for inner in module.modules()):
            if module is not decoder:
                found |= _beside(module, decoder, head, f"{prefix}{name}.")
        elif module is not head and _num_params(module):
            found[prefix + name] = module
    return found


def _stack(module: nn.Module) -> bool:
    """Whether it holds a list of layers."""
    return any(isinstance(inner, nn.ModuleList) and len(inner) for inner in module.modules())


def _maps_to(module: nn.Module, size: int) -> bool:
    """Whether one of its weights has outputs of `size` features."""
    return any(parameter.ndim > 1 and size in parameter.shape[:2] for parameter in module.parameters())


def _num_params(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
