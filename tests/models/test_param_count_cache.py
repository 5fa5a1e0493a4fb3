"""Counts are kept where torch is not wanted, and never believed beyond their configuration."""

import json
import shutil

import pytest

from raysearch import pocket
from raysearch.errors import InputError
from raysearch.files import write_json
from raysearch.models import load_config, param_count
from raysearch.models.param_count_cache import SHIPPED, counts_of_model
from raysearch.models.shape import Shape
from raysearch.models.shape_solver import shape_for_ratio


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "raysearch" / "counts"


@pytest.fixture
def folder(tmp_path):
    """The embedded LVLM under another configuration: one that has not been counted."""
    folder = shutil.copytree(pocket.weights_folder(), tmp_path / "mine")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["initializer_range"] = 0.017
    write_json(folder / "config.json", config)
    return folder


def never(config):
    raise AssertionError(f"{config.model_type} was counted")


def test_the_shipped_counts_are_up_to_date(monkeypatch):
    counted = param_count.counts_of(load_config("pocket"))
    monkeypatch.setattr(param_count, "counts_of", never)
    assert counts_of_model("pocket") == counted, f"renew {SHIPPED.name}: python -m raysearch.models.param_count_cache"


def test_sizes_of_the_embedded_model_by_hand(monkeypatch):
    monkeypatch.setattr(param_count, "counts_of", never)
    counts = counts_of_model("pocket")
    assert counts.dense == Shape(num_layers=7, num_kv_heads=6, num_heads=12, num_ffn_channels=512, hidden_size=160)
    # Per layer 160 x 16 weights for each of 12 queries and outputs and 6 keys and values, 3 x 160 per channel, 2 norms.
    layer = 2 * 160 * 16 * (12 + 6) + 3 * 160 * 512 + 2 * 160
    assert counts.layer(counts.dense) == layer
    assert counts.kv_cache_bytes(counts.dense, 1000) == 1000 * 2 * 7 * 6 * 16 * 2
    assert shape_for_ratio(counts, "layerwise", 0.3).num_layers == 5


def test_a_folder_is_counted_once(folder, cache, capsys, monkeypatch):
    first = counts_of_model(str(folder))
    assert capsys.readouterr().err == f"raysearch: counting the parameters of {folder}, once\n"
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(param_count, "counts_of", never)
    assert counts_of_model(str(folder)) == first
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("content", ["", "{}", '{"key": "another"}', "[1]", '{"key": 7, "dense": 3}'])
def test_a_spoilt_file_is_counted_anew(folder, cache, content):
    first = counts_of_model(str(folder))
    (kept,) = cache.iterdir()
    kept.write_text(content)
    assert counts_of_model(str(folder)) == first
    assert json.loads(kept.read_text())["key"] == kept.stem


def test_another_configuration_is_another_key(folder):
    counts_of_model(str(folder))
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 5
    write_json(folder / "config.json", config)
    assert counts_of_model(str(folder)).dense.num_layers == 5


def test_a_home_that_cannot_be_written_to_costs_time_only(folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert counts_of_model(str(folder)).dense.num_layers == 7


def test_a_truncated_folder_is_refused_though_its_counts_are_known(folder):
    counts_of_model(str(folder))
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(InputError, match="truncated"):
        counts_of_model(str(folder))


def test_no_such_model():
    with pytest.raises(InputError, match="no such folder"):
        counts_of_model("./no-such-model")
