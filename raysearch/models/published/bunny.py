"""Read the published Bunny checkpoints (SigLIP + Phi-2) as a stock LLaVA with a Phi decoder.

The published folders need code of their own; their tensors fit `LlavaForConditionalGeneration` under other names.
Two differences: the head's bias, which the stock class lacks, becomes the least-squares shift of the final norm's bias
(exact where the bias lies in the span of the head); and the image token, a negative number in Bunny's code, becomes the
first id after the tokenizer's.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaConfig, PhiConfig, SiglipVisionConfig

from raysearch.errors import InputError
from raysearch.models.published import renamed

MODEL_TYPE = "bunny-phi"
SIGLIP_SO400M = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_attention_heads": 16,
    "image_size": 384,
    "patch_size": 14,
}
"""The tower of every published Bunny; the folders don't contain its configuration."""
FIRST_FREE_TOKEN = 50295
"""The first row of the embedding after the tokenizer's."""
_RENAMED = (
    (r"^model\.vision_tower\.vision_tower\.vision_model\.", "model.vision_tower."),
    (r"^model\.mm_projector\.0\.", "model.multi_modal_projector.linear_1."),
    (r"^model\.mm_projector\.2\.", "model.multi_modal_projector.linear_2."),
    (r"^model\.(embed_tokens|final_layernorm|layers)\.", r"model.language_model.\1."),
)
_TOWER_LAYERS = 27
_BUNNY_OWN = ("model_type", "architectures", "auto_map", "torch_dtype", "transformers_version")


def stock_tensors(tensors: dict[str, torch.Tensor], folder: Path) -> dict[str, torch.Tensor]:
    """Published tensors under the stock names, without the tower's pooling head, which LLaVA doesn't use."""
    stock = {renamed(name, _RENAMED): tensor for name, tensor in tensors.items()}
    stock = {name: t for name, t in stock.items() if not name.startswith("model.vision_tower.head.")}
    bias = stock.pop("lm_head.bias", None)
    if bias is not None:
        _fold_head_bias(stock, bias, folder)
    return stock


def stock_config(published: dict[str, Any], names: Iterable[str], folder: Path) -> LlavaConfig:
    """The stock configuration of a published one, given the published names of its tensors.

    Bunny reads the tower's last layer but one; some folders have only 26 of its 27 layers.

    Raises:
        InputError: the image token lies outside the embedding.
    """
    text = PhiConfig(**{name: value for name, value in published.items() if name not in _BUNNY_OWN})
    stock = [renamed(name, _RENAMED) for name in names]
    layers = {name.split(".")[4] for name in stock if name.startswith("model.vision_tower.encoder.layers.")}
    token = published.get("image_token_id", FIRST_FREE_TOKEN)
    if not 0 <= token < text.vocab_size:
        raise InputError(
            f"{folder}/config.json: image_token_id {token} is outside the embedding's {text.vocab_size} rows; "
            "set it to a free row"
        )
    return LlavaConfig(
        text_config=text,
        vision_config=SiglipVisionConfig(**SIGLIP_SO400M, num_hidden_layers=len(layers), vision_use_head=False),
        image_token_id=token,
        image_seq_length=(SIGLIP_SO400M["image_size"] // SIGLIP_SO400M["patch_size"]) ** 2,
        vision_feature_layer=-2 if len(layers) == _TOWER_LAYERS else -1,
        vision_feature_select_strategy="full",
        tie_word_embeddings=False,
    )


def nearest_shift(head: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The shift s of the normalised state that makes `head @ s` nearest to `bias`, up to a constant over all tokens,
    which cancels in the softmax.

    Args:
        head: (vocabulary, hidden).
        bias: (vocabulary,).

    Returns:
        s in fp64, (hidden,), and the root mean square of the rest of the bias.
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
            f"{folder}: the stock class has no head bias; the final norm can't hold {rest:.4f} per token of it "
            f"(root mean square), of {float(bias.double().square().mean().sqrt()):.4f}",
            stacklevel=3,
        )
