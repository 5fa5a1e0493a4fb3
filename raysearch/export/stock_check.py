"""Run alone, in a process that never imports raysearch: does a folder load with transformers, and does it answer?

    python -I raysearch/export/stock_check.py FOLDER

Prints one JSON line: the number of parameters and the text generated for a grey picture.
"""

import json
import sys
from typing import Any

PROMPT = "What is in the picture?"


def main(folder: str) -> None:
    """Load, generate, report."""
    import torch
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
    processor = load_processor(folder)
    with torch.inference_mode():
        inputs = encode(processor).to(model.device)
        answer = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    text = processor.decode(answer[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    print(json.dumps({"num_params": model.num_parameters(), "text": text}))


def load_processor(folder: str) -> Any:
    """The processor; by its pillow variant where torchvision is missing."""
    from transformers import AutoProcessor

    try:
        return AutoProcessor.from_pretrained(folder)
    except (ImportError, RuntimeError):
        return AutoProcessor.from_pretrained(folder, use_fast=False)


def encode(processor: Any) -> Any:
    """A grey picture and a question, in the model's own chat format if it has one."""
    from PIL import Image

    picture = Image.new("RGB", (64, 64), (128, 128, 128))
    text = PROMPT
    if getattr(processor, "chat_template", None):
        content = [{"type": "image"}, {"type": "text", "text": PROMPT}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True
        )
    else:
        text = f"{getattr(processor, 'image_token', '<image>')}\n{PROMPT}"
    return processor(images=picture, text=text, return_tensors="pt")


if __name__ == "__main__":
    main(sys.argv[1])
