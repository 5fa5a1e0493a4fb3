"""A model in the precision that a CPU multiplies fast, for a while."""

import pytest
import torch

from raysearch.models import precision
from tests.support import tiny_models


@pytest.mark.parametrize("fast", [True, False])
def test_a_bf16_model_is_in_fp32_only_inside_and_only_where_bf16_is_slow(monkeypatch, fast):
    monkeypatch.setattr(precision, "multiplies_bf16_fast", lambda device: fast)
    model = tiny_models.FAMILIES["llava_llama"].model().to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with precision.in_fast_precision(model):
        assert model.dtype == (torch.bfloat16 if fast else torch.float32)
        assert all(torch.equal(tensor.bfloat16(), before[name]) for name, tensor in model.state_dict().items())
    assert model.dtype == torch.bfloat16
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_an_fp32_model_stays_and_an_error_brings_the_own_weights_back(monkeypatch):
    monkeypatch.setattr(precision, "multiplies_bf16_fast", lambda device: False)
    model = tiny_models.FAMILIES["llama"].model()
    with precision.in_fast_precision(model):
        assert model.dtype == torch.float32
    model.to(torch.bfloat16)
    with pytest.raises(ValueError, match="inside"), precision.in_fast_precision(model):
        raise ValueError("inside")
    assert model.dtype == torch.bfloat16
