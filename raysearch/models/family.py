"""A family: where an architecture of transformers keeps its decoder, projector, vision tower and head.

Known families are rows of `known_families`. An architecture without a row works if it follows transformers'
conventions: `get_decoder()`, `get_output_embeddings()`, and one of the usual names for the other parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from raysearch.errors import InputError
from raysearch.models.known_families import KNOWN_FAMILIES
from raysearch.models.transformers_classes import empty_model

VISION_NAMES = ("vision_tower", "vision_model", "visual", "vision_encoder", "image_encoder")
PROJECTOR_NAMES = ("multi_modal_projector", "mm_projector", "connector", "projector", "aligner")
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
        found = model.get_decoder()
        if not isinstance(getattr(found, "layers", None), nn.ModuleList):
            raise self._not_found(model, "decoder", "get_decoder().layers")
        return found

    def final_norm(self, model: PreTrainedModel) -> nn.Module:
        """The norm between the last decoder layer and the language head."""
        decoder = self.decoder(model)
        for name in FINAL_NORM_NAMES:
            if isinstance(getattr(decoder, name, None), nn.Module):
                return getattr(decoder, name)
        raise self._not_found(model, "final norm", ", ".join(FINAL_NORM_NAMES))

    def vision(self, model: PreTrainedModel) -> list[nn.Module]:
        """The vision tower's modules; empty for a plain language model."""
        return [self._part(model, "vision tower", path) for path in self.vision_paths]

    def projector(self, model: PreTrainedModel) -> list[nn.Module]:
        """The projector's modules; empty for a plain language model."""
        return [self._part(model, "projector", path) for path in self.projector_paths]

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

    def num_leading_layers_kept(self, config: PretrainedConfig) -> int:
        """How many first decoder layers can't be dropped: Qwen3-VL adds visual features behind the first ones, by
        position, so dropping one would shift the features."""
        vision = getattr(config, "vision_config", None)
        return len(getattr(vision, "deepstack_visual_indexes", None) or ())

    def layers_name(self, model: PreTrainedModel) -> str:
        """Dotted name of the decoder's layer list inside `model`."""
        wanted = self.decoder(model).layers
        return next(name for name, module in model.named_modules() if module is wanted)

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

    Parts of an architecture without a row are found by their conventional names on the model; given a configuration
    alone, on an empty model made from it.

    Raises:
        InputError: a part is missing; the message names it, the names that were tried and the known families.
    """
    config = model_or_config if isinstance(model_or_config, PretrainedConfig) else model_or_config.config
    if config.model_type in KNOWN_FAMILIES:
        return Family(config.model_type, **KNOWN_FAMILIES[config.model_type])
    if config.get_text_config(decoder=True) is config and getattr(config, "vision_config", None) is None:
        return Family(config.model_type, is_multimodal=False)
    if isinstance(model_or_config, PretrainedConfig):
        model_or_config = empty_model(model_or_config)
    return _by_convention(model_or_config)


def _by_convention(model: PreTrainedModel) -> Family:
    """Parts found by the usual names, on the model with the head or one module below it."""
    plain = Family(model.config.model_type)
    plain.decoder(model)
    return Family(
        model.config.model_type,
        vision_paths=(_first_path(plain, model, "vision tower", VISION_NAMES),),
        projector_paths=(_first_path(plain, model, "projector", PROJECTOR_NAMES),),
    )


def _first_path(family: Family, model: nn.Module, what: str, names: Sequence[str]) -> str:
    paths = [prefix + name for name in names for prefix in ("model.", "")]
    modules = dict(model.named_modules())
    found = [path for path in paths if path in modules]
    if not found:
        raise family._not_found(model, what, ", ".join(paths))
    return found[0]
