"""The stock class (transformers' own) of a configuration, and its empty model."""

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from raysearch.errors import InputError


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class with a language head that transformers builds from `config`.

    Raises:
        InputError: transformers knows none.
    """
    for mapping in (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING):
        if type(config) in mapping:
            found = mapping[type(config)]
            return found[0] if isinstance(found, tuple) else found
    raise InputError(
        f"{config.model_type}: no vision-language or causal language model of transformers has this configuration"
    )


def empty_model(config: PretrainedConfig, cls: type[PreTrainedModel] | None = None) -> PreTrainedModel:
    """The stock model of `config` on the meta device: shapes without memory."""
    with torch.device("meta"):
        return (cls or model_class(config))._from_config(config)
