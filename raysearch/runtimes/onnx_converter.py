"""Export a checkpoint as ONNX graphs; runs in its own process and is imported by nothing.

    python raysearch/runtimes/onnx_converter.py CHECKPOINT FOLDER

Writes `embeddings.onnx` (tokens to embeddings), `decoder.onnx` (embeddings and a KV cache to logits and the new cache)
and, for a class whose decoder takes nothing of a picture but its features, `pictures.onnx` (the processor's tensors to
features). All in fp32, for one row. Prints one JSON line: what is not possible.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import Dim
from transformers import AutoConfig, DynamicCache

from raysearch import models
from raysearch.data.encoding import TOKEN_KEYS
from raysearch.errors import first_line
from raysearch.export.stock_check import encode
from raysearch.logging import quiet

NUM_PAST, NUM_TOKENS = 5, 7
LARGEST_DIFFERENCE = 1e-3


class Decoder(nn.Module):
    """Embeddings (1, tokens, hidden), mask (1, past + tokens), positions (1, tokens) and the cache's keys and values
    (1, heads, past, size) to the last token's logits (1, 1, vocabulary) and the grown cache."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, embeddings: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, past: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """One step."""
        cache = DynamicCache(list(zip(past[::2], past[1::2], strict=True)))
        found = self.model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return found.logits, [part for layer in found.past_key_values.layers for part in (layer.keys, layer.values)]


class Pictures(nn.Module):
    """The processor's tensors of pictures to features (image tokens, hidden)."""

    def __init__(self, model: Any, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, tensors: list[torch.Tensor]) -> torch.Tensor:
        """All pictures at once."""
        return features_of(self.model, dict(zip(self.names, tensors, strict=True)))


def features_of(model: Any, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """(image tokens, hidden) features of pictures."""
    found = model.get_image_features(**tensors)
    found = getattr(found, "pooler_output", found)
    parts = found if isinstance(found, list | tuple) else [found]
    return torch.cat([part.reshape(-1, part.shape[-1]) for part in parts])


def takes_features(model: Any, image_token: int, inputs: dict[str, torch.Tensor]) -> bool:
    """Whether the decoder gives the same logits for embeddings in which features stand for the image tokens."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    embeddings = model.get_input_embeddings()(ids)
    tensors = {name: value for name, value in inputs.items() if name not in TOKEN_KEYS}
    embeddings[ids == image_token] = features_of(model, tensors)
    whole = model(**inputs).logits
    placed = model(inputs_embeds=embeddings, attention_mask=mask).logits
    return float((whole - placed).abs().max()) < LARGEST_DIFFERENCE


def export_pictures(model: Any, checkpoint: str, image_token: int | None, to: Path) -> str:
    """Write the graph for pictures; the reason if there can't be one."""
    reason = "the decoder takes more of a picture than its features"
    try:
        inputs = dict(encode(models.load_processor(checkpoint)))
        if image_token is not None and takes_features(model, image_token, inputs):
            names = [name for name in inputs if name not in TOKEN_KEYS]
            export(Pictures(model, names), ([inputs[name] for name in names],), names, ["features"], to)
            return ""
    except Exception as error:
        reason = first_line(error)
    for path in to.parent.glob(f"{to.name}*"):
        path.unlink()
    return f"pictures: the decoder alone is converted ({reason})"


def main(checkpoint: str, folder: str) -> None:
    """Export all graphs."""
    to, note = Path(folder), ""
    config = AutoConfig.from_pretrained(checkpoint)
    model = models.model_class(config).from_pretrained(checkpoint, dtype=torch.float32, attn_implementation="eager")
    model.eval().requires_grad_(False)
    family, embed = models.family_for(model), model.get_input_embeddings()
    if family.is_multimodal:
        note = export_pictures(model, checkpoint, family.image_token_id(config), to / "pictures.onnx")
    ids = torch.arange(NUM_TOKENS)[None]
    export(embed, (ids,), ["tokens"], ["embeddings"], to / "embeddings.onnx", ({1: Dim.DYNAMIC},))
    cache = model(input_ids=torch.arange(NUM_PAST)[None], use_cache=True).past_key_values
    past = [part for layer in cache.layers for part in (layer.keys, layer.values)]
    names = [f"{kind}.{layer}" for layer in range(len(past) // 2) for kind in ("key", "value")]
    example = (
        embed(ids),
        torch.ones(1, NUM_PAST + NUM_TOKENS),
        torch.arange(NUM_PAST, NUM_PAST + NUM_TOKENS)[None],
        past,
    )
    shapes = ({1: Dim.DYNAMIC}, {1: Dim.DYNAMIC}, {1: Dim.DYNAMIC}, [{2: Dim.DYNAMIC}] * len(past))
    export(
        Decoder(model),
        (example[0], example[1].long(), *example[2:]),
        ["embeddings", "mask", "positions", *(f"past.{name}" for name in names)],
        ["logits", *names],
        to / "decoder.onnx",
        shapes,
    )
    print(json.dumps({"note": note}))


def export(
    module: nn.Module, example: Any, inputs: list[str], outputs: list[str], to: Path, shapes: Any = None
) -> None:
    """Write one graph, its weights beside it."""
    torch.onnx.export(
        module, example, to, input_names=inputs, output_names=outputs, dynamic_shapes=shapes, dynamo=True, verbose=False
    )


if __name__ == "__main__":
    with quiet(), torch.no_grad():
        main(*sys.argv[1:])
