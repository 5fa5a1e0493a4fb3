"""Time and memory of `raysearch prune` on a folder of two billion random weights, in shards.

    python scripts/benchmarks/prune_large.py                  # Qwen3-VL-2B's numbers: 4.3 GB on disk, twice
    python scripts/benchmarks/prune_large.py --layers 4       # a shorter decoder

The numbers are those of Qwen/Qwen3-VL-2B-Instruct's config.json. The peak is of resident memory (`ru_maxrss`), mapped
files included.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PretrainedConfig, Qwen3VLConfig

from raysearch.files import write_json
from raysearch.models import empty_model

SHARD_BYTES = 1_000_000_000


def config_of(num_layers: int) -> PretrainedConfig:
    """The LVLM's configuration."""
    text = {
        "vocab_size": 151_936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": num_layers,
        "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    }  # fmt: skip
    vision = {
        "depth": 24, "hidden_size": 1024, "num_heads": 16, "intermediate_size": 4096, "out_hidden_size": 2048,
        "patch_size": 16, "deepstack_visual_indexes": [5, 11, 17],
    }  # fmt: skip
    return Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, dtype="bfloat16")


def write_model(config: PretrainedConfig, folder: Path) -> int:
    """Write random weights, a shard at a time; returns how many there are."""
    model = empty_model(config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    shards: list[dict[str, torch.Tensor]] = [{}]
    num_params, num_bytes, where = 0, 0, {}
    for name, parameter in model.named_parameters():
        if num_bytes > SHARD_BYTES:
            save_file(shards.pop(), folder / f"model-{len(set(where.values())):05d}.safetensors", {"format": "pt"})
            shards, num_bytes = [{}], 0
        where[name] = f"model-{len(set(where.values())) + (not shards[0]):05d}.safetensors"
        shards[0][name] = torch.empty(parameter.shape, dtype=torch.bfloat16).normal_(std=0.02)
        num_params, num_bytes = num_params + parameter.numel(), num_bytes + 2 * parameter.numel()
    save_file(shards.pop(), folder / f"model-{len(set(where.values())):05d}.safetensors", {"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    return num_params


def main() -> None:
    """Print a line per way to prune."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "dense"
        folder.mkdir()
        num_params = write_model(config_of(parser.parse_args().layers), folder)
        print(f"{num_params:,} parameters in {len(list(folder.glob('*.safetensors')))} shards", flush=True)
        for mode in ("widthwise", "layerwise"):
            command = ["-m", "raysearch", "prune", str(folder), "--mode", mode, "--ratio", "0.3"]
            started = time.perf_counter()
            subprocess.run([sys.executable, *command, "--to", f"{name}/{mode}"], check=True)
            seconds = time.perf_counter() - started
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"{mode}: {seconds:.0f} s, at most {peak:.2f} GiB resident so far", flush=True)


if __name__ == "__main__":
    main()
