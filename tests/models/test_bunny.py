"""The published Bunny layout, on a tiny model written under the published names."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlavaForConditionalGeneration

from raysearch.errors import InputError
from raysearch.models import family_for, load
from raysearch.models.published import bunny
from raysearch.models.published.bunny import nearest_shift
from tests.support.tiny_models import CLIP, FAMILIES, IMAGE, VOCABULARY


@pytest.fixture(autouse=True)
def _tiny_tower(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = {name: value for name, value in CLIP.items() if name != "num_hidden_layers"}
    monkeypatch.setattr(bunny, "SIGLIP_SO400M", tower)


def published(model: LlavaForConditionalGeneration, folder: Path, bias: torch.Tensor) -> None:
    """Write a stock model as Bunny's authors would."""
    text = model.config.text_config.to_dict()
    config = {
        **text,
        "model_type": "bunny-phi",
        "architectures": ["BunnyPhiForCausalLM"],
        "mm_hidden_size": 16,
        "image_token_id": IMAGE,
    }
    (folder / "config.json").write_text(json.dumps(config))
    tensors = {"lm_head.bias": bias, "model.vision_tower.vision_tower.vision_model.head.probe": torch.ones(1)}
    for name, tensor in model.state_dict().items():
        name = name.replace("model.language_model.", "model.")
        name = name.replace("model.vision_tower.", "model.vision_tower.vision_tower.vision_model.")
        name = name.replace("multi_modal_projector.linear_1", "mm_projector.0")
        name = name.replace("multi_modal_projector.linear_2", "mm_projector.2")
        tensors[name] = tensor.contiguous()
    save_file(tensors, folder / "model.safetensors")


def test_published_names_load_into_the_stock_class(tmp_path: Path) -> None:
    family = FAMILIES["bunny"]
    model, batch = family.model(), family.batch()
    published(model, tmp_path, torch.zeros(VOCABULARY))
    loaded = load(tmp_path)[0]
    assert type(loaded) is LlavaForConditionalGeneration
    assert family_for(loaded).model_type == "llava"
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)


def test_a_head_bias_in_the_span_of_the_head_is_kept_exactly(tmp_path: Path) -> None:
    family = FAMILIES["bunny"]
    model, batch = family.model(), family.batch()
    bias = model.lm_head.weight.detach() @ torch.randn(64) + 3.0  # a constant changes no probability
    published(model, tmp_path, bias)
    loaded = load(tmp_path)[0]
    with torch.inference_mode():
        expected = torch.log_softmax(model(**batch).logits + bias, -1)
        torch.testing.assert_close(torch.log_softmax(loaded(**batch).logits, -1), expected, atol=1e-4, rtol=1e-4)


def test_a_head_bias_outside_it_is_told(tmp_path: Path) -> None:
    model = FAMILIES["bunny"].model()
    published(model, tmp_path, torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)))
    with pytest.warns(UserWarning, match="no head bias"):
        load(tmp_path)


def test_the_nearest_shift_by_hand() -> None:
    head = torch.tensor([[1.0], [0.0], [-1.0]])
    shift, rest = nearest_shift(head, torch.tensor([5.0, 3.0, 1.0]))
    assert shift.tolist() == pytest.approx([2.0])  # 5, 3, 1 is 2 * (1, 0, -1) + 3
    assert rest == pytest.approx(0, abs=1e-9)
    assert nearest_shift(head, torch.tensor([1.0, -2.0, 1.0]))[1] == pytest.approx(2**0.5)


def test_what_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    published(FAMILIES["bunny"].model(), tmp_path, torch.zeros(VOCABULARY))
    config = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"image_token_id": None}, "image_token_id 50295 is outside the embedding's 96 rows"),
        ({"num_hidden_layers": 5}, "asks for 14 tensors that the files lack"),
        ({"num_hidden_layers": 3}, "hold 14 tensors that the configuration lacks"),
        ({"intermediate_size": 80}, "in the files and .* by the configuration"),
    ):
        changed = {name: value for name, value in {**config, **change}.items() if value is not None}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        with pytest.raises(InputError, match=message):
            load(tmp_path)
