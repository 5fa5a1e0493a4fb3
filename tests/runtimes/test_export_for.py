"""Exports for other runtimes: the proof's arithmetic, its card, and the runtimes where they are installed."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from raysearch import pocket
from raysearch.data.samples import sample_from_row
from raysearch.errors import InputError
from raysearch.pocket.model import NUM_IMAGE_TOKENS
from raysearch.runtimes import export_for as exporting
from raysearch.runtimes.environments import Environment, environment
from raysearch.runtimes.export_for import RUNTIMES, export_for
from raysearch.runtimes.llama_cpp import _type_of
from raysearch.runtimes.proof import NUM_QUESTIONS, Proof, _prepared, ask_transformers, prove, questions_of
from raysearch.study.front import Speed

SPEED = Speed(
    device="a CPU",
    dtype="f32",
    num_prompt_tokens=10,
    prefill_seconds=0.5,
    decode_tokens_per_second=20.0,
    peak_memory_bytes=3_000_000,
    checkpoint_bytes=2_000_000,
    kv_cache_bytes_per_1000_tokens=1000,
)
DRIVER = """
import json, sys
import numpy as np
request = json.load(open(sys.argv[1]))
stored = json.load(open(request["model"]))
np.savez(sys.argv[2], **{str(i): np.array(row, np.float32) for i, row in enumerate(stored["logits"])})
print("loading")
print(json.dumps({"answers": stored["answers"], "same_tokens": [], "speed": stored["speed"]}))
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Three questions with pictures to the embedded LVLM."""
    folder = tmp_path_factory.mktemp("asked") / "questions"
    return ask_transformers(pocket.weights_folder(), questions_of()[:3], True, folder)


def test_questions_come_from_all_benchmarks_in_turn():
    samples = questions_of()
    assert len(samples) == NUM_QUESTIONS
    assert len({sample.id for sample in samples}) == NUM_QUESTIONS
    assert all(len(sample.images) == 1 for sample in samples)


def test_small_pictures_are_enlarged_by_whole_factors(tmp_path):
    picture = Image.new("RGB", (48, 100), (10, 20, 30))
    picture.putpixel((47, 99), (200, 0, 0))
    turns = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "a"},
    ]
    sample = sample_from_row({"messages": turns, "image": picture}, "a")
    enlarged = Image.open(_prepared(sample, True, tmp_path / "a").images[0])
    assert enlarged.size == (48 * 6, 100 * 6)
    assert {enlarged.getpixel((x, y)) for x in range(282, 288) for y in range(594, 600)} == {(200, 0, 0)}
    without = _prepared(sample, False, tmp_path / "b")
    assert without.images == ()
    assert without.messages[0]["content"] == [{"type": "text", "text": "what?"}]


def test_the_reference_is_what_the_model_answers(asked):
    assert [len(question["pictures"]) for question in asked.questions] == [1, 1, 1]
    for question, answer, logits in zip(asked.questions, asked.answers, asked.logits, strict=True):
        assert question["ids"].count(asked.image_token) == NUM_IMAGE_TOKENS
        assert question["text_ids"].count(asked.image_token) == 1
        assert answer[0] == logits.argmax()
        assert answer[-1] in asked.ends


def test_a_proof_counts_answers_and_differences(asked, tmp_path):
    logits = asked.logits.copy()
    logits[1, 7] += 0.25
    answers = [*asked.answers[:2], [*asked.answers[2][:-1], 9]]
    speed = {
        name: getattr(SPEED, name) for name in Speed.model_fields if name not in ("device", "dtype", "checkpoint_bytes")
    }
    model = tmp_path / "model-f32.json"
    model.write_text(json.dumps({"answers": answers, "logits": logits.tolist(), "speed": speed}))
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    folder = tmp_path / "runtime"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    (folder / "runtime.json").write_text('{"package": "abacus==1"}')
    proof = prove(Environment("onnxruntime", folder), driver, {"model": str(model), "mmproj": None}, asked, tmp_path)
    assert (proof.num_same, proof.num_questions, proof.num_same_tokens) == (2, 3, None)
    assert proof.largest_difference == pytest.approx(0.25, abs=1e-6)
    assert proof.logit_std == pytest.approx(float(np.mean([row.std() for row in asked.logits])))
    assert proof.with_pictures
    assert proof.speed.dtype == "f32"
    assert proof.speed.checkpoint_bytes == model.stat().st_size
    assert proof.holds
    assert proof.describe().startswith(
        "abacus==1: 2 of 3 answers as in transformers, largest difference of a logit 0.25"
    )


def test_a_card_has_the_proof_in_place_of_transformers_use(tmp_path):
    proof = Proof("abacus==1", 20, 19, 20, 0.5, 2.0, True, SPEED, SPEED.model_copy(update={"prefill_seconds": 1.0}))
    (tmp_path / "README.md").write_text("---\ntags: [a]\n---\n\n# Small\n\n## Use\n\nfrom transformers import x\n")
    card = exporting._card("abacus", tmp_path, proof, "`abacus model`")
    assert card.startswith("---\ntags: [a]\n---\n\n# Small\n\n## In abacus\n")
    assert "| same greedy answers as transformers | 19 of 20 questions about pictures |" in card
    assert "| largest difference of a logit | 0.5; their standard deviation is 2 |" in card
    assert "| prefill of 10 tokens | 500 ms; dense model 1e+03 ms |" in card
    assert card.endswith("## Use\n\n`abacus model`\n")
    assert "from transformers" not in card
    assert not Proof("a", 1, 0, None, 0.51, 2.0, True, SPEED).holds


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({"dtype": "bfloat16"}, "bf16"),
        ({"torch_dtype": "float32"}, "f32"),
        ({"text_config": {"dtype": "float16"}}, "f16"),
        ({}, "f16"),
        ({"dtype": "bfloat16", "quantization_config": {"config_groups": {}}}, "f16"),
    ],
)
def test_weights_keep_their_type(config, kind):
    assert _type_of(config) == kind


def test_what_the_runtime_refuses_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise InputError("abacus: too many beads")

    monkeypatch.setattr(exporting, "environment", lambda name: Environment(name, tmp_path))
    monkeypatch.setitem(RUNTIMES, "onnxruntime", exporting.Runtime(refuse, Path("x"), str, keeps_processor=False))
    with pytest.raises(InputError, match="too many beads"):
        export_for("onnxruntime", pocket.weights_folder(), tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


def installed(name):
    try:
        environment(name)
    except InputError:
        return False
    return True


@pytest.mark.slow
@pytest.mark.skipif(not installed("onnxruntime"), reason="raysearch runtime install onnxruntime")
def test_the_embedded_model_in_onnx_runtime(tmp_path):
    proof = export_for("onnxruntime", pocket.weights_folder(), tmp_path / "small")
    assert (proof.num_same, proof.with_pictures, proof.note) == (20, True, "")
    assert proof.largest_difference < 1e-3  # fp32 on both sides
    names = {path.name for path in (tmp_path / "small" / "onnx-f32").glob("*.onnx")}
    assert names == {"decoder.onnx", "embeddings.onnx", "pictures.onnx"}
    assert (tmp_path / "small" / "tokenizer.json").is_file()
    assert not list((tmp_path / "small").glob("*.safetensors"))


@pytest.mark.slow
@pytest.mark.skipif(not installed("llama.cpp"), reason="raysearch runtime install llama.cpp")
def test_a_tokenizer_that_llama_cpp_does_not_know_is_one_line(tmp_path):
    shutil.copytree(pocket.weights_folder(), tmp_path / "model")
    with pytest.raises(InputError, match=r"converting for llama\.cpp: failed"):
        export_for("llama.cpp", tmp_path / "model", tmp_path / "small")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
