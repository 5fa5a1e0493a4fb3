"""Export pruned models of several families for a runtime, and print what it answers beside transformers.

    python scripts/benchmarks/runtimes.py llama.cpp                       # all families: 10 minutes on two cores
    python scripts/benchmarks/runtimes.py llama.cpp --family gemma3 --keep FOLDER

The models are small, with random weights in fp32 and the tokenizer of SmolLM2; pocket-smollm2 is a trained one in bf16.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from raysearch import models
from raysearch.errors import InputError
from raysearch.models.checkpoint_files import stored_folder
from raysearch.pocket.smollm2 import CHAT_TEMPLATE, NAME
from raysearch.pruning.checkpoint import prune_checkpoint
from raysearch.runtimes.export_for import export_for

IMAGE_SIZE, PATCH, SCALE = 288, 16, 3
NUM_IMAGE_TOKENS = (IMAGE_SIZE // PATCH // SCALE) ** 2
VISION = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "image_size": IMAGE_SIZE, "patch_size": PATCH,
}  # fmt: skip
Made = tuple[hf.PreTrainedModel, Any]


def text(tokenizer: Any, **more: Any) -> dict[str, Any]:
    """Numbers of a small decoder."""
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    sizes = {
        "hidden_size": 128, "intermediate_size": 384, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "max_position_embeddings": 4096, "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
    }  # fmt: skip
    return {**sizes, **ids, **more}


def with_tokens(tokenizer: Any, *tokens: str) -> list[int]:
    """Add special tokens; return their ids."""
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return [tokenizer.convert_tokens_to_ids(token) for token in tokens]


def random_model(config: hf.PretrainedConfig) -> hf.PreTrainedModel:
    """A model whose weights are large enough that every unit matters."""
    torch.manual_seed(0)
    model = models.model_class(config)._from_config(config).float().eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and "embed_tokens" not in name:
            torch.nn.init.normal_(parameter, std=1.2 * parameter[0].numel() ** -0.5)
        elif parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.get_input_embeddings().weight.data.normal_()
    model.generation_config.eos_token_id = config.get_text_config().eos_token_id
    return model


def llama(tokenizer: Any) -> Made:
    """A plain decoder."""
    return random_model(hf.LlamaConfig(**text(tokenizer))), tokenizer


def qwen3(tokenizer: Any) -> Made:
    """A plain decoder with norms of queries and keys."""
    return random_model(hf.Qwen3Config(**text(tokenizer, head_dim=16))), tokenizer


def idefics3(tokenizer: Any) -> Made:
    """Idefics3 with SigLIP, as SmolVLM."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    tiles = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    image, *_ = with_tokens(
        tokenizer, "<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *tiles
    )
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size={"longest_edge": IMAGE_SIZE}
    )
    processor = hf.Idefics3Processor(pictures, tokenizer, NUM_IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)
    config = hf.Idefics3Config(
        text_config=hf.LlamaConfig(**text(tokenizer)),
        vision_config=VISION,
        image_token_id=image,
        scale_factor=SCALE,
        tie_word_embeddings=True,
    )
    return random_model(config), processor


def gemma3(tokenizer: Any) -> Made:
    """Gemma 3 with SigLIP; five of six layers have a sliding window."""
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    named = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = hf.AutoTokenizer.from_pretrained(stored_folder(NAME), extra_special_tokens=named)
    image, begin, end = (tokenizer.convert_tokens_to_ids(token) for token in named.values())
    processor = hf.Gemma3Processor(
        Gemma3ImageProcessorPil(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, image_mean=[0.5] * 3, image_std=[0.5] * 3
        ),
        tokenizer,
        chat_template=CHAT_TEMPLATE.replace("<image>", "<start_of_image>"),
        image_seq_length=NUM_IMAGE_TOKENS,
    )
    decoder = hf.Gemma3TextConfig(**text(tokenizer, head_dim=16, query_pre_attn_scalar=16, sliding_window=32))
    config = hf.Gemma3Config(
        text_config=decoder,
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        image_token_index=image,
        boi_token_index=begin,
        eoi_token_index=end,
        mm_tokens_per_image=NUM_IMAGE_TOKENS,
    )
    return random_model(config), processor


def qwen2_5_vl(tokenizer: Any) -> Made:
    """Qwen2.5-VL; needs torchvision, for its processor of videos."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    names = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    image, video, begin, end = with_tokens(tokenizer, *names)
    processor = hf.Qwen2_5_VLProcessor(
        Qwen2VLImageProcessorPil(),
        tokenizer,
        _video_processor(),
        chat_template=CHAT_TEMPLATE.replace("<image>", "<|vision_start|><|image_pad|><|vision_end|>"),
    )
    rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 1e6}
    vision = {
        "depth": 3, "hidden_size": 96, "intermediate_size": 160, "num_heads": 4, "out_hidden_size": 128,
        "patch_size": 14, "window_size": 112, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = hf.Qwen2_5_VLConfig(
        text_config=text(tokenizer, num_attention_heads=4, num_key_value_heads=2, rope_parameters=rope),
        vision_config=vision,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=begin,
        vision_end_token_id=end,
        tie_word_embeddings=True,
    )
    return random_model(config), processor


def _video_processor() -> Any:
    from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

    return Qwen2VLVideoProcessor()


def llava(tokenizer: Any) -> Made:
    """LLaVA-1.5 with CLIP."""
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    (image,) = with_tokens(tokenizer, "<image>")
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    processor = hf.LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size),
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )
    config = hf.LlavaConfig(
        text_config=hf.LlamaConfig(**text(tokenizer)),
        vision_config=hf.CLIPVisionConfig(**VISION),
        image_token_id=image,
        tie_word_embeddings=True,
    )
    return random_model(config), processor


FAMILIES: dict[str, Callable[[Any], Made]] = {
    "llama": llama,
    "qwen3": qwen3,
    "llava": llava,
    "idefics3": idefics3,
    "gemma3": gemma3,
    "qwen2_5_vl": qwen2_5_vl,
}


def main() -> None:
    """Export each family, dense and pruned in depth and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runtime", choices=["llama.cpp", "onnxruntime"])
    parser.add_argument("--family", action="append", choices=[*FAMILIES, NAME])
    parser.add_argument("--keep", type=Path, help="folder for the models; a temporary one if left out")
    given = parser.parse_args()
    print("| family | shape | answers as in transformers | largest difference of a logit | pruned, dense tokens/s | |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as passing:
        folder = given.keep or Path(passing)
        for name in given.family or [*FAMILIES, NAME]:
            try:
                row = export(given.runtime, name, folder / name)
            except InputError as error:
                row = f"refused: {error}"
            print(f"| {name} | {row} |", flush=True)


def export(runtime: Any, name: str, folder: Path) -> str:
    """Prune a model by a layer in four and a quarter of the rest, export it, and describe the proof."""
    dense, pruned = folder / "dense", folder / "pruned"
    if name == NAME:
        dense = stored_folder(NAME)
    elif not dense.exists():
        model, processor = FAMILIES[name](models.load_processor(NAME).tokenizer)
        model.save_pretrained(dense)
        processor.save_pretrained(dense)
    if not pruned.exists():
        prune_checkpoint(str(dense), mode="both", to=pruned, ratio=0.17, criterion="deepest+magnitude")
    proof = export_for(runtime, pruned, folder / runtime, dense=str(dense))
    speeds = [speed.decode_tokens_per_second for speed in (proof.speed, proof.dense) if speed]
    config = hf.AutoConfig.from_pretrained(pruned).get_text_config()
    shape = f"{config.num_hidden_layers} layers, {config.num_attention_heads}/{config.num_key_value_heads} heads, "
    shape += f"{config.intermediate_size} channels"
    pictures = "with pictures" if proof.with_pictures else "text alone"
    difference = f"{proof.largest_difference:.2g} of std {proof.logit_std:.2g}"
    numbers = ", ".join(f"{speed:.0f}" for speed in speeds)
    return f"{shape} | {proof.num_same} of {proof.num_questions}, {pictures} | {difference} | {numbers} | {proof.note}"


if __name__ == "__main__":
    main()
