"""The dense model's states: right places, right head."""

import pytest
import torch
import transformers as hf

from raysearch.data.labels import IGNORED, answer_labels, answer_states
from raysearch.models import family_for
from raysearch.recovery.teacher import Teacher, language_head
from tests.support.recovery_setup import samples, tiny_encoder, tiny_family, tiny_model
from tests.support.tiny_models import FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_states_and_head_give_the_models_own_logits(name: str) -> None:
    """On every family: the head on the states is what the whole model says before each answer token."""
    tiny = FAMILIES[name]
    model, batch = tiny.model(), tiny.batch(padded=True)
    with torch.no_grad():
        whole = model(**batch).logits
        ours = language_head(model, family_for(model))(answer_states(model, batch))
    wanted = batch["labels"][:, 1:] != IGNORED
    torch.testing.assert_close(ours, whole[:, :-1][wanted])
    assert torch.equal(answer_labels(batch), batch["labels"][:, 1:][wanted])


@pytest.mark.parametrize(
    ("config", "more"),
    [(hf.Gemma2Config, {"final_logit_softcapping": 2.0}), (hf.GraniteConfig, {"logits_scaling": 4.0})],
)
def test_what_models_do_behind_their_head(config: type[hf.PretrainedConfig], more: dict[str, float]) -> None:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "head_dim": 8}
    text = config(**sizes, num_attention_heads=2, num_key_value_heads=1, **more)
    model = hf.AutoModelForCausalLM.from_config(text).eval()
    batch = {"input_ids": torch.arange(6)[None], "labels": torch.arange(6)[None]}
    torch.nn.init.normal_(model.lm_head.weight)
    with torch.no_grad():
        ours = language_head(model, family_for(model))(answer_states(model, batch))
        torch.testing.assert_close(ours, model(input_ids=batch["input_ids"]).logits[0, :-1])


def test_eval_mode_and_no_gradient() -> None:
    model = tiny_model().train()
    encoder = tiny_encoder()
    teacher = Teacher(model, tiny_family())
    assert not model.training
    targets = teacher.targets(encoder.collate([encoder.encode(samples()[0])]), [0])
    assert not targets.requires_grad
