"""Load a model and its processor from a folder, which is checked to be complete first."""

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from raysearch.errors import InputError, first_line
from raysearch.files import read_json
from raysearch.logging import quiet
from raysearch.models.chat_template import check_chat_template
from raysearch.models.checkpoint_files import check_folder, model_folder, read_config, stored_folder
from raysearch.models.family import family_for
from raysearch.models.published import bunny, internvl_chat
from raysearch.models.transformers_classes import empty_model, model_class

ProcessorLike = Any
"""A transformers processor, or a tokenizer for a plain language model; None when the folder has neither."""


def load(
    model: str | Path, dtype: torch.dtype | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, ProcessorLike]:
    """Load a model in eval mode, and its processor.

    Args:
        model: a folder, a hub id, or `pocket` for the embedded LVLM.
        dtype: of the weights; None keeps the file's.
        trust_remote_code: run code that comes with the checkpoint.

    Raises:
        InputError: no such model, files missing or truncated, or a configuration that contradicts its weights.
    """
    source = stored_folder(model)
    config = load_config(source, trust_remote_code)
    loaded, report = _weights(source, config, dtype, trust_remote_code)
    if contradiction := _contradiction(loaded, report, is_converted=_conversion(source) is not None):
        raise InputError(f"{model}: {contradiction}; config.json and the weights are of different models")
    if not _is_tied(loaded):
        _untie(loaded.config)
    return loaded.eval(), _processor(source, trust_remote_code)


def load_config(model: str | Path, trust_remote_code: bool = False) -> PretrainedConfig:
    """The configuration of a folder, of a hub id, or of the embedded LVLM (`pocket`), as stock transformers loads it.

    Of a folder's weights no more is read than their names, and the head if the configuration ties it and the folder
    has one all the same: stock transformers then ties it only if it equals the embedding.

    Raises:
        InputError: no such model, a folder whose weights are missing, truncated or quantised, or no configuration that
            transformers knows.
    """
    source = stored_folder(model, with_weights=False)
    shards = check_folder(source) if source == model_folder(model) else {}
    if conversion := _conversion(source):
        source = stored_folder(model)
        return _converted_config(conversion, source)
    read_config(source)
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(source), trust_remote_code=trust_remote_code)
    except Exception as error:
        raise InputError(f"{source}/config.json: can't be read by transformers ({first_line(error)})") from None
    if shards:
        _check_bytes(config, source, shards)
    if _has_own_head(config, shards):
        _untie(config)
    return config


def _check_bytes(config: PretrainedConfig, source: Path, shards: Mapping[str, Path]) -> None:
    """Refuse a configuration that asks for far more than the files hold, before that is allocated."""
    num_params = sum(parameter.numel() for parameter in empty_model(copy.deepcopy(config)).parameters())
    num_bytes = sum(path.stat().st_size for path in set(shards.values()))
    if not 0 < num_params <= 4 * num_bytes:
        raise InputError(
            f"{source}: config.json asks for {num_params:,} parameters, and the files hold {num_bytes:,} bytes; "
            "config.json and the weights are of different models"
        )


def _has_own_head(config: PretrainedConfig, shards: Mapping[str, Path]) -> bool:
    """Whether a head that the configuration ties to the embedding is stored with other values."""
    if not any(getattr(part, "tie_word_embeddings", False) for part in _text_parts(config)):
        return False
    for names in (getattr(model_class(config), "_tied_weights_keys", None) or {}).items():
        ends = [".".join(name.split(".")[-2:]) for name in names]
        stored = [[name for name in shards if f".{name}".endswith(f".{end}")] for end in ends]
        if [len(found) for found in stored] == [1, 1]:
            head, embedding = (_tensor(shards[found[0]], found[0]) for found in stored)
            return not torch.equal(head, embedding)
    return False


def _tensor(path: Path, name: str) -> torch.Tensor:
    with safe_open(path, "pt") as stream:
        return stream.get_tensor(name)


def _is_tied(model: PreTrainedModel) -> bool:
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    return head is not None and getattr(head, "weight", None) is getattr(embedding, "weight", None)


def _untie(config: PretrainedConfig) -> None:
    for part in _text_parts(config):
        if getattr(part, "tie_word_embeddings", False):
            part.tie_word_embeddings = False


def _text_parts(config: PretrainedConfig) -> tuple[PretrainedConfig, PretrainedConfig]:
    return config, config.get_text_config(decoder=True)


def _weights(
    source: Path, config: PretrainedConfig, dtype: torch.dtype | None, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, Any]]:
    auto = AutoModelForImageTextToText if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING else AutoModelForCausalLM
    conversion, given = _conversion(source), {}
    if conversion:
        auto, given = model_class(config), {"config": config, "state_dict": _converted(conversion, source)}
    try:
        with quiet():  # its warnings become one error below
            return auto.from_pretrained(
                None if given else str(source),
                **given,
                dtype=dtype or "auto",
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # reported, then refused with their names
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
            )
    except Exception as error:
        raise InputError(f"{source}: can't be loaded by transformers ({first_line(error)})") from None


_CONVERSIONS: dict[str, Any] = {module.MODEL_TYPE: module for module in (bunny, internvl_chat)}
"""Modules that convert published checkpoints which need code of their own, by `model_type`."""


def _conversion(folder: Path) -> Any:
    """The module that converts the folder's checkpoint to a stock class; None if it has one."""
    try:
        return _CONVERSIONS.get(read_json(folder / "config.json")["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _converted_config(conversion: Any, folder: Path) -> PretrainedConfig:
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            names += stream.keys()
    published = read_json(folder / "config.json")
    try:
        return conversion.stock_config(published, names, folder)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{folder}/config.json: no configuration of {conversion.MODEL_TYPE} ({error!r})") from None


def _converted(conversion: Any, folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return conversion.stock_tensors({name: t for file in files for name, t in load_file(file).items()}, folder)


def _contradiction(loaded: PreTrainedModel, report: dict[str, Any], is_converted: bool) -> str | None:
    """A difference between the files and the configuration, if any. Unused tensors outside the decoder's layers are
    common in stock folders; a conversion must use every tensor."""
    if mismatched := sorted(report["mismatched_keys"]):
        name, in_files, wanted = mismatched[0]
        return f"{name} is {tuple(in_files)} in the files and {tuple(wanted)} by the configuration"
    if missing := sorted(report["missing_keys"]):
        return f"the configuration asks for {len(missing)} tensors that the files lack, the first is {missing[0]}"
    if report["unexpected_keys"]:
        layers = family_for(loaded).layers_name(loaded)
        unused = sorted(name for name in report["unexpected_keys"] if is_converted or name.startswith(f"{layers}."))
        if unused:
            return f"the files hold {len(unused)} tensors that the configuration lacks, the first is {unused[0]}"
    return None


_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json")


def load_processor(model: str | Path, trust_remote_code: bool = False) -> ProcessorLike:
    """The processor of a model, without its weights; see `load`."""
    return _processor(model_folder(model), trust_remote_code)


def _processor(source: Path, trust_remote_code: bool) -> ProcessorLike:
    """The processor of an LVLM or the tokenizer of a language model; None for a folder without their files."""
    for auto, files in ((AutoProcessor, _PROCESSOR_FILES), (AutoTokenizer, _TOKENIZER_FILES)):
        if not any((source / name).is_file() for name in files):
            continue
        try:
            with quiet():
                found = auto.from_pretrained(str(source), trust_remote_code=trust_remote_code)
        except Exception as error:
            what = auto.__name__.removeprefix("Auto").lower()
            hint = "" if find_spec("torchvision") else "; if it is one for videos too, install torchvision"
            raise InputError(f"{source}: its {what} can't be read ({first_line(error)}){hint}") from None
        templates = getattr(found, "chat_template", None) or {}
        for template in templates.values() if isinstance(templates, dict) else [templates]:
            check_chat_template(str(template), source)
        return found
    return None
