"""Check without raysearch that a folder loads with transformers and generates text; imported by nothing.

    python -I raysearch/export/stock_check.py FOLDER [--speed] [NUM_PARAMS]

Prints one JSON line: number of parameters, text generated for a grey image, and with --speed its speed and memory,
unless it has another number of parameters than NUM_PARAMS.
"""

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

PROMPT = "What is in the picture?"
NUM_DECODED = 32
MIN_RUNS, MAX_RUNS, SECONDS_TO_MEASURE = 3, 20, 1.0


def main(folder: str, speed: bool = False, wanted: int | None = None) -> None:
    """Load, generate, measure, print."""
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    if speed and torch.cuda.is_available():
        model.to("cuda")
    processor = load_processor(folder)
    with torch.inference_mode():
        inputs = encode(processor).to(model.device)
        answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        text = processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        found = {"num_params": num_params(model), "text": text}
        if speed and wanted in (None, found["num_params"]):
            found["speed"] = measure(model, inputs)
            files = Path(folder).glob("*.safetensors")
            found["speed"]["checkpoint_bytes"] = sum(path.stat().st_size for path in files)
    print(json.dumps(found))


def num_params(model: Any) -> int:
    """Number of parameters, without the scales and shapes of packed weights, once a forward pass has unpacked them."""
    own = (".weight_scale", ".weight_shape")
    return sum(p.numel() for name, p in model.named_parameters() if not name.endswith(own))


def load_processor(folder: str) -> Any:
    """The processor; the Pillow variant where torchvision is missing."""
    try:
        return AutoProcessor.from_pretrained(folder)
    except (ImportError, RuntimeError):
        return AutoProcessor.from_pretrained(folder, use_fast=False)


def encode(processor: Any) -> Any:
    """A grey image and a question, in the model's chat template if it has one."""
    image = Image.new("RGB", (64, 64), (128, 128, 128))
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    else:
        text = f"{getattr(processor, 'image_token', '<image>')}\n{PROMPT}"
    return processor(images=image, text=text, return_tensors="pt")


def measure(model: Any, inputs: Any) -> dict[str, Any]:
    """Prefill, decoding and memory of a batch of one; times are medians over the runs of SECONDS_TO_MEASURE."""
    cache = model(**inputs, use_cache=True).past_key_values
    cache_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    num_tokens = int(inputs["input_ids"].shape[1])
    prefill = median_seconds(lambda: model(**inputs, use_cache=True))
    generate = partial(model.generate, **inputs, do_sample=False)
    decoded = [
        median_seconds(partial(generate, min_new_tokens=num, max_new_tokens=num)) for num in (1, 1 + NUM_DECODED)
    ]
    return {
        "device": device_name(model),
        "dtype": str(model.dtype).removeprefix("torch."),
        "num_prompt_tokens": num_tokens,
        "prefill_seconds": prefill,
        "decode_tokens_per_second": NUM_DECODED / (decoded[1] - decoded[0]),
        "peak_memory_bytes": peak_bytes(model),
        "kv_cache_bytes_per_1000_tokens": round(1000 * cache_bytes / num_tokens),
    }


def median_seconds(run: Callable[[], Any]) -> float:
    """Median time of several runs, after a warm-up."""
    run()
    seconds: list[float] = []
    while len(seconds) < MIN_RUNS or (len(seconds) < MAX_RUNS and sum(seconds) < SECONDS_TO_MEASURE):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def device_name(model: Any) -> str:
    """The GPU, or the CPU and the number of threads."""
    if model.device.type == "cuda":
        return torch.cuda.get_device_name(model.device)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} threads"


def peak_bytes(model: Any) -> int:
    """Peak memory so far: of the GPU, or of this process on a CPU."""
    if model.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    peaks = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    # Without /proc: this includes the parent's memory at the fork.
    return 1024 * (peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


if __name__ == "__main__":
    main(sys.argv[1], "--speed" in sys.argv[2:], next((int(given) for given in sys.argv[2:] if given.isdigit()), None))
