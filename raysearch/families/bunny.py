"""Read the published Bunny checkpoints (SigLIP + Phi-2) as a stock LLaVA with a Phi decoder.

The published folders need code of their own; their tensors fit `LlavaForConditionalGeneration` under other names.
Two differences: the head's bias, which the stock class lacks, becomes the nearest shift of the final norm's bias (in
the least-squares sense; exact where the bias lies in the span of the head); and the image token, a negative number in
Bunny's code, becomes the first id after the tokenizer's.
"""

import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import LlavaConfig, LlavaForConditionalGeneration, PhiConfig, SiglipVisionConfig

from raysearch.errors import InputError

MODEL_TYPE = "bunny-phi"
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
"""The tower of every published Bunny; the folders do not say it."""
_RENAMED = (
    (r"^model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.(embed_tokens|final_layernorm|layers)\.", r"model.language_model.\1."),
)
_TOWER_LAYERS = 27
_BUNNY_OWN = ("model_type", "architectures", "auto_map", "torch_dtype", "transformers_version")


def is_bunny(folder: Path) -> bool:
    """Whether the folder's configuration is of a published Bunny with a Phi decoder."""
    try:
        return json.loads((folder / "config.json").read_text()).get("model_type") == MODEL_TYPE
    except (OSError, ValueError):
        return False


def load_bunny(
    folder: Path,
    dtype: torch.dtype | str | None = None,
    tower: dict[str, int] | None = None,
    image_token_id: int | None = None,
) -> LlavaForConditionalGeneration:
    """The folder's weights in a stock model, in eval mode.

    Args:
        folder: with config.json and safetensors files.
        dtype: of the weights; None keeps the file's.
        tower: extents of the SigLIP tower, if it is not SO400M at 384 pixels.
        image_token_id: a row of the embedding that no text uses; None takes the first after the tokenizer's.

    Raises:
        InputError: weights are missing, or there is no free row.
    """
    published = json.loads((folder / "config.json").read_text())
    tensors = renamed(
        {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}
    )
    bias = tensors.pop("lm_head.bias", None)
    if bias is not None:
        _fold_head_bias(tensors, bias, folder)
    config = stock_config(published, tensors, tower or SIGLIP_SO400M, image_token_id)
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    missing, unknown = model.load_state_dict(tensors, strict=False, assign=True)
    if missing or unknown:
        raise InputError(
            f"{folder}: no published Bunny, {len(missing)} tensors missing, {len(unknown)} unknown"
        )
    _fill_buffers(model, config)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    return (model.to(wanted) if isinstance(wanted, torch.dtype) else model).eval()


def bunny_config(folder: Path) -> LlavaConfig:
    """The stock configuration of a published folder; no weights are read."""
    published = json.loads((folder / "config.json").read_text())
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as stream:
            names += map(stock_name, stream.keys())
    return stock_config(published, names, SIGLIP_SO400M, None)


def stock_name(name: str) -> str:
    """A published tensor's name in the stock class."""
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name


def renamed(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors under their stock names; the tower's pooling head, which LLaVA never asks, is left out."""
    found = {stock_name(name): tensor for name, tensor in tensors.items()}
    return {name: t for name, t in found.items() if not name.startswith("model.vision_tower.head.")}


def stock_config(
    published: dict[str, Any],
    names: Iterable[str],
    tower: dict[str, int],
    image_token_id: int | None,
) -> LlavaConfig:
    """The stock configuration of a published one, and of the stock names of its tensors.

    Bunny reads the tower's last layer but one; folders with 26 of its 27 layers have left out the last.
    """
    text = PhiConfig(**{name: value for name, value in published.items() if name not in _BUNNY_OWN})
    layers = {name.split(".")[4] for name in names if name.startswith("model.vision_tower.encoder.layers.")}
    num_rows = text.vocab_size
    token = image_token_id if image_token_id is not None else published.get("image_token_id", 50295)
    if not 0 <= token < num_rows:
        raise InputError(
            f"image_token_id {token}: outside the embedding's {num_rows} rows; choose a free row"
        )
    return LlavaConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(**tower, num_hidden_layers=len(layers), vision_use_head=False),
        image_token_id=token,
        image_seq_length=(tower["image_size"] // tower["patch_size"]) ** 2,
        vision_feature_layer=-2 if len(layers) == _TOWER_LAYERS else -1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def nearest_shift(head: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The shift s of the normalised state that makes `head @ s` nearest to `bias`, up to a constant for all tokens,
    which no softmax sees.

    Args:
        head: (vocabulary, hidden).
        bias: (vocabulary,).

    Returns:
        s in fp64, (hidden,), and the root mean square of what is left of the bias.
    """
    columns = torch.cat([head.double(), torch.ones(len(head), 1, dtype=torch.float64)], dim=1)
    solution = torch.linalg.lstsq(columns, bias.double()[:, None], driver="gelsd").solution[:, 0]
    rest = columns @ solution - bias.double()
    return solution[:-1], float(rest.square().mean().sqrt())


def _fold_head_bias(tensors: dict[str, torch.Tensor], bias: torch.Tensor, folder: Path) -> None:
    if not bias.any():
        return
    shift, rest = nearest_shift(tensors["lm_head.weight"], bias)
    name = "model.language_model.final_layernorm.bias"
    tensors[name] = (tensors[name].double() + shift).to(tensors[name].dtype)
    if rest > 1e-4:
        warnings.warn(
            f"{folder}: the stock class has no head bias; what the final norm can't take over is {rest:.4f} per token "
            f"(root mean square), of {float(bias.double().square().mean().sqrt()):.4f}",
            stacklevel=3,
        )


def _fill_buffers(model: LlavaForConditionalGeneration, config: LlavaConfig) -> None:
    """Buffers that no file holds (rotary frequencies, position ids), computed as the stock class does."""
    small = LlavaConfig.from_dict(config.to_dict())
    small.text_config.num_hidden_layers = small.vision_config.num_hidden_layers = 1
    small.text_config.vocab_size = small.text_config.intermediate_size = 8
    filled = dict(LlavaForConditionalGeneration(small).named_buffers())
    for name, _ in list(model.named_buffers()):
        parent, _, leaf = name.rpartition(".")
        model.get_submodule(parent)._buffers[leaf] = filled[name]
