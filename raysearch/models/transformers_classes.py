"""The stock class (transformers' own) of a configuration, and its empty model."""

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from raysearch.errors import InputError, first_line
from raysearch.logging import quiet


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
    """The stock model of `config` on the meta device: shapes without memory.

    Raises:
        InputError: transformers can't build it: numbers that contradict each other, or a package is missing.
    """
    cls = cls or model_class(config)
    try:
        with torch.device("meta"), quiet():
            return cls._from_config(config)
    except Exception as error:  # whatever the architecture's own code raises
        raise InputError(
            f"{config.model_type}: transformers can't build {cls.__name__} ({first_line(error)})"
        ) from None
