"""What a person brings: a checkpoint of Qwen2.5-VL's architecture, LLaVA-style data and questions, all in files.

The model is tiny and random, so the right answers are its own: the pruned one is measured by what it still says.
Qwen2.5-VL's own processor needs torchvision for videos; the folder holds a stock one for pictures alone, which turns
them into the same tensors.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import transformers as hf
from PIL import Image
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models

from raysearch import models
from raysearch.config.benchmarks import BenchmarkConfig
from raysearch.data.encoding import Encoder
from raysearch.evaluation.evaluator import generate_answers
from raysearch.evaluation.questions import read_questions
from tests.support.tiny_models import FAMILIES, IMAGE, VIDEO, VOCABULARY

ASKED = ("what", "where", "which", "who", "when", "how", "why", "whose")
_TEMPLATE = (
    "{% for m in messages %}<turn>{{ m['role'] }} {% for part in m['content'] %}{% if part['type'] == 'image' %}"
    "<vision><image_pad></vision> {% else %}{{ part['text'] }} {% endif %}{% endfor %}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<turn>assistant {% endif %}"
)


def write_model(folder: Path) -> Path:
    """The checkpoint, with its tokenizer, processor and chat template."""
    model = FAMILIES["qwen2_5_vl"].model(seed=3)
    model.generation_config = hf.GenerationConfig(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    model.save_pretrained(folder)
    _processor().save_pretrained(folder)
    return folder


def write_data(folder: Path, num_rows: int = 24) -> Path:
    """LLaVA-style rows with pictures in a folder beside them."""
    random = np.random.default_rng(0)
    rows = []
    for index in range(num_rows):
        picture = _picture(folder / "images", f"train/{index}.png", random)
        answer = f"word{random.integers(20, 60)} word{random.integers(20, 60)}"
        turns = [{"from": "human", "value": f"<image>\n{ASKED[index % 8]}"}, {"from": "gpt", "value": answer}]
        rows.append({"id": str(index), "image": picture, "conversations": turns})
    (folder / "train.json").write_text(json.dumps(rows))
    return folder / "train.json"


def write_questions(folder: Path, model: Path, num_pictures: int = 24) -> BenchmarkConfig:
    """Two questions about each picture as JSON lines; the answers are what `model` says."""
    random = np.random.default_rng(1)
    rows = []
    for index in range(num_pictures):
        picture = _picture(folder, f"asked/{index}.png", random)
        for word in random.choice(ASKED, 2, replace=False):
            rows.append({"image": picture, "question": str(word), "answer": "unknown"})
    entry = BenchmarkConfig(
        name="own", data=str(folder / "questions.jsonl"), metric="normalised", prompt="{question}", max_new_tokens=2
    )
    _write_lines(Path(entry.data), rows)
    whole = entry.model_copy(update={"heldout_data": entry.data})  # all rows in one split
    loaded, processor = models.load(str(model))
    encoder = Encoder(processor, models.family_for(loaded), 64)
    answers = generate_answers(loaded, encoder, read_questions(whole, "search"), 2)
    answered = [{**row, "answer": said} for row, said in zip(rows, answers, strict=True) if said]
    _write_lines(Path(entry.data), answered)
    return entry


def space_of(model: Path, data: Path, questions: BenchmarkConfig, **more: Any) -> dict[str, Any]:
    """A search space over them."""
    return {
        "name": "own",
        "model": str(model),
        "data": str(data),
        "benchmarks": [questions.model_dump(mode="json", exclude_defaults=True)],
        "budgets": ["95%"],
        "recipe": {
            "mode": ["layerwise", "widthwise"],
            "ratio": {"low": 0.1, "high": 0.4},
            "criterion": ["deepest", "activation"],
            "trained": ["nothing", "projector", "projector+lora"],
            "lora_rank": 2,
            "hidden_kd": [0.0, 1.0],
            "lr": 1e-3,
        },
        "search": {"trials": 4, "first_rung": 0.5, "seed": 1},
        "calibration": {"num_samples": 8},
        "recovery": {"batch_size": 4, "max_length": 64, "zero_stage": 1},
        "slots": {"num": 1},
        **more,
    }


def _processor() -> hf.PaddleOCRVLProcessor:
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "<turn>", "user", "assistant", *ASKED]
    words += [f"word{number}" for number in range(len(words), VOCABULARY)]
    words[IMAGE], words[VIDEO], words[VIDEO + 1], words[VIDEO + 2] = ("<image_pad>", "<video>", "<vision>", "</vision>")
    tokenizer = Tokenizer(token_models.WordLevel({word: at for at, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image_pad>"},
        additional_special_tokens=["<turn>", "<vision>", "</vision>"],
    )
    pictures = hf.Qwen2VLImageProcessorPil(
        patch_size=8, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 32 * 32, "longest_edge": 64 * 64}
    )
    return hf.PaddleOCRVLProcessor(pictures, fast, chat_template=_TEMPLATE)


def _picture(folder: Path, name: str, random: np.random.Generator) -> str:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((32, 32), 0).save(path)
    return name


def _write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
