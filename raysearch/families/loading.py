"""Load a model and its processor from a folder that has been checked to be whole."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
)

from raysearch.errors import InputError
from raysearch.families.bunny import bunny_config, is_bunny, load_bunny
from raysearch.families.quiet import quiet
from raysearch.model_folder import check_folder, model_folder

ProcessorLike = Any
"""A transformers processor, or a tokenizer for a plain language model; None when the folder has neither."""


def load(
    model: str | Path, dtype: torch.dtype | str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ProcessorLike]:
    """Load a model in eval mode, and its processor.

    Args:
        model: a folder, a hub id, or `pocket` for the embedded LVLM.
        dtype: of the weights; None keeps the file's.
        trust_remote_code: run code that comes with the checkpoint. Off unless a person says so.

    Raises:
        InputError: no such model, files missing or truncated, or a configuration that contradicts its weights.
    """
    source = model_folder(model)
    if is_bunny(source):
        check_folder(source)
        return load_bunny(source, dtype), _processor(source, trust_remote_code)
    config = load_config(model, trust_remote_code)
    loaded, report = _weights(source, config, dtype, trust_remote_code)
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise InputError(
            f"{model}: the configuration asks for {len(names)} tensors that the files lack, the first is {names[0]}; "
            "config.json and the weights are of different models"
        )
    return loaded.eval(), _processor(source, trust_remote_code)


def load_config(model: str | Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a folder, of a hub id, or of the embedded LVLM (`pocket`); no weights are read.

    Raises:
        InputError: no such model, a folder whose weights are missing or truncated, or no configuration that
            transformers knows.
    """
    source = model_folder(model)
    if source.is_dir():
        check_folder(source)
    if is_bunny(source):
        return bunny_config(source)
    try:
        with quiet():
            return AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, KeyError, StrictDataclassError) as error:
        if not source.exists():
            raise InputError(
                f"model {str(model)!r}: no such folder, and the hub didn't give it ({_first_line(error)})"
            ) from None
        raise InputError(
            f"{source}/config.json: can't be read by transformers ({_first_line(error)})"
        ) from None


def _weights(
    source: Path, config: PretrainedConfig, dtype: torch.dtype | str | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    auto = (
        AutoModelForImageTextToText
        if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING
        else AutoModelForCausalLM
    )
    try:
        with quiet():  # what it would say becomes one error below
            return auto.from_pretrained(
                str(source),
                dtype=dtype or "auto",
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except (RuntimeError, OSError, ValueError) as error:
        raise InputError(f"{source}: config.json and the weights don't fit: {_first_line(error)}") from None


_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def _processor(source: Path, trust_remote_code: bool) -> ProcessorLike:
    """The processor of an LVLM or the tokenizer of a language model; from a folder, only if its files are there."""
    for auto, files in ((AutoProcessor, _PROCESSOR_FILES), (AutoTokenizer, _TOKENIZER_FILES)):
        if source.is_dir() and not any((source / name).is_file() for name in files):
            continue
        try:
            with quiet():
                return auto.from_pretrained(str(source), trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError, AttributeError, TypeError) as error:
            if source.is_dir():
                what = auto.__name__.removeprefix("Auto").lower()
                hint = (
                    "" if find_spec("torchvision") else "; if it is one for videos too, install torchvision"
                )
                raise InputError(f"{source}: its {what} can't be read ({_first_line(error)}){hint}") from None
    return None


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
