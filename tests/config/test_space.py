"""Search spaces: every shipped file loads, short forms mean what they say, mistakes get one plain line."""

import contextlib
import copy
import json
import random
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from raysearch.config.space import SearchSpace
from raysearch.errors import InputError
from raysearch.files import write_json

SHIPPED = sorted(Path(__file__).parents[2].glob("search_spaces/*.yaml"))
POCKET = Path(__file__).parents[2] / "search_spaces" / "pocket.yaml"


class Dice:
    """A `Suggester` that records the bounds of each name."""

    def __init__(self, seed=0):
        self.random, self.asked = random.Random(seed), {}

    def choice(self, name, choices):
        assert self.asked.setdefault(name, list(choices)) == list(choices)
        return self.random.choice(choices)

    def number(self, name, low, high, log, step):
        assert self.asked.setdefault(name, (low, high, log, step)) == (low, high, log, step)
        return self.random.uniform(low, high)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_spaces_load_and_suggest(path):
    space, dice, recipes = SearchSpace.load(path), Dice(), set()
    for _ in range(200):
        with contextlib.suppress(ValidationError):  # all loss weights 0, where a space has that
            recipes.add(space.suggest(dice).key)
    assert len(recipes) > 10
    lines = path.read_text().splitlines()
    assert lines[0].startswith("# ")
    assert any(line.startswith("# Needs ") for line in lines)


LAYERS, WIDTHS = ("block_influence", "greedy_loss"), ("taylor", "activation")


def test_a_name_is_always_asked_with_the_same_bounds_and_only_when_it_applies():
    space, dice = SearchSpace.load(POCKET), Dice()
    for _ in range(300):
        recipe = space.suggest(dice)
        assert (recipe.lora_rank is None) == (recipe.trained != "projector+lora")
        assert (recipe.temperature is None) == (not recipe.logits_kd)
        assert (recipe.depth_share is None) == (recipe.mode != "both")
        assert recipe.criteria[0] in ((None,) if recipe.mode == "widthwise" else LAYERS)
        assert recipe.criteria[1] in ((None,) if recipe.mode == "layerwise" else WIDTHS)
    assert {"lr#0", "lr#1", "lr#2", "layer_criterion", "width_criterion"} <= set(dice.asked)
    assert "sft" not in dice.asked  # a single choice needs no suggestion


def test_mode_both_joins_a_layer_and_a_width_criterion():
    content = yaml.safe_load(POCKET.read_text())
    content["recipe"]["mode"] = "both"
    recipe = SearchSpace.model_validate(content).suggest(Dice())
    assert recipe.criteria[0] in LAYERS
    assert recipe.criteria[1] in WIDTHS


def test_criteria_and_largest_recovery():
    space = SearchSpace.load(POCKET)
    assert space.criteria() == [*LAYERS, *WIDTHS]
    assert space.largest_recovery(2000) == 8000  # four passes
    narrow = yaml.safe_load(POCKET.read_text())
    narrow["recipe"] |= {"mode": "layerwise", "data_fraction": {"low": 0.1, "high": 0.5}, "epochs": 2}
    assert SearchSpace.model_validate(narrow).criteria() == list(LAYERS)
    assert SearchSpace.model_validate(narrow).largest_recovery(2000) == 2000


def test_a_space_survives_its_own_json():
    space = SearchSpace.load(POCKET)
    assert SearchSpace.model_validate(space.model_dump(mode="json")) == space


MISTAKES = [
    ({"modle": 1}, "modle: unknown key; known are name, model,"),
    ({"search.trils": 1}, "search.trils: unknown key; known are trials,"),
    ({"search.trils": 1}, "search.trils: .*; did you mean trials?"),
    ({"recipe.mod": 1}, "recipe.mod: not a field of a recipe; known are mode,"),
    ({"recipe.mode": ["layrwise"]}, "recipe.mode: .*'layrwise'"),
    ({"recipe.ratio": {"low": 0.5, "high": 0.2}}, "recipe.ratio: low 0.5 is above high 0.2; swap them"),
    ({"recipe.ratio": {"low": 0.5, "high": 1.2}}, "recipe.ratio: .*must be below 1, not 1.2"),
    ({"recipe.ratio": {"low": 0.5}}, "recipe.ratio.high: missing; give it"),
    ({"recipe.ratio": None}, "recipe.ratio: "),
    ({"recipe.ratio": []}, "recipe.ratio: must have 1 or more entries"),
    ({"recipe.ratio": {"low": 0.1, "high": 0.2, "when": {"lr": 1}}}, "recipe.ratio: when names 'lr'"),
    ({"recipe.criterion": ["taylor"]}, "recipe.criterion: none applies to mode layerwise; add one of block_influence"),
    ({"recipe.lr": {"low": 0, "high": 0.1, "log": True}}, "recipe.lr: must be above 0, not 0"),
    ({"recipe.mode": {"low": 0, "high": 1}}, "recipe.mode: "),
    ({"recipe.ratio": {"choices": True}}, "recipe.ratio.choices: must be a list, not True"),
    ({"recipe.ratio": {"choices": [0.1], "when": 5}}, "recipe.ratio.when: must be a mapping of keys to values, not 5"),
    ({"recipe": [1]}, "recipe: must map fields"),
    ({"budgets": ["12"]}, "budgets: budget '12': not a size; write a share"),
    ({"search.trials": 0}, "search.trials: .*not 0"),
    ({"search.trials": 10**12}, "search.trials: must be at most 1000000, not 1000000000000"),
    ({"search.runs": 1e300}, "search.runs: .*not 1e\\+300"),
    ({"search.shapes": 10**9}, "search.shapes: .*not 1000000000"),
    ({"search.reduction_factor": 1.000001}, "search.reduction_factor: .*not 1.000001"),
    ({"search.seed": 10**30}, "search.seed: .*not 10"),
    ({"slots": {"num": 10**9}}, "slots.num: .*not 1000000000"),
    ({"recipe.epochs": ["1e15"]}, "recipe.epochs: .*not '1e15'"),
    ({"recipe.lora_rank": 10**9}, "recipe.lora_rank: .*not 1000000000"),
    ({"recipe.lr": [1 / (i + 1) for i in range(1001)]}, "recipe.lr.0: must have 1000 entries at most"),
    ({"search.runs": 0}, "search.runs: .*not 0"),
    ({"search.time": "2 weeks"}, "search.time: '2 weeks' is no duration; write 90s, 20m, 2h, 1h30m or 1d"),
    ({"search.time": 90}, "search.time: '90' is no duration; write 90s"),
    ({"name": "../x"}, "name: '../x': begin with a letter or digit"),
    ({"data": [{"path": "x", "weight": -1}]}, "data.0.weight: must be above 0, not -1"),
    ({"data": 5}, "data: must be text or a list, not 5"),
    ({"benchmarks": [{"name": "a", "data": "x", "metric": "exct"}]}, "benchmarks.0.metric: .*; did you mean exact?"),
    ({"benchmarks": [{"name": "a", "data": "x"}]}, "benchmarks.0.metric: missing; give it"),
    ({"benchmarks": ["digits", 5]}, "benchmarks.1: must be a mapping of keys to values, not 5"),
    ({"search.trials": 1.5}, "search.trials: must be a whole number, not 1.5"),
    ({"search.early_stopping": "perhaps"}, "search.early_stopping: must be true or false, not 'perhaps'"),
    ({"model": None}, "model: must be text, not null"),
    ({"search.until_gain": "x" * 500}, f"search.until_gain: must be a number, not '{'x' * 79}[.][.][.]"),
    ({"recovery.zero_stage": 4}, "recovery.zero_stage: "),
    ({"recovery.hidden_layers": [0.5, 1.5]}, "recovery.hidden_layers.1: .*not 1.5"),
    ({"recovery.hidden_layers": []}, "recovery.hidden_layers: "),
    ({"recovery.kd_tokens": "all"}, "recovery.kd_tokens: .*'answers' or 'answers\\+images', not 'all'"),
    (
        {"recipe.sft": 0, "recipe.logits_kd": [0.0], "recipe.hidden_kd": 0},
        "recipe.sft, logits_kd, hidden_kd: all 0; raise one, or set trained: nothing",
    ),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[str(change)[:40] for change, _ in MISTAKES])
def test_mistakes_name_file_key_and_way_out_in_one_line(tmp_path, change, message):
    content = copy.deepcopy(yaml.safe_load(POCKET.read_text()))
    for path, value in change.items():
        target = content
        *parents, last = path.split(".")
        for parent in parents:
            target = target[parent]
        target[last] = value
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=rf"^{path}: {message}") as error:
        SearchSpace.load(path)
    assert "\n" not in str(error.value)


def test_a_misspelt_key_is_named_and_not_the_missing_one(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(POCKET.read_text().replace("\nmodel:", "\nmodle:"))
    with pytest.raises(InputError, match=r"modle: unknown key; known are .*; did you mean model\?$"):
        SearchSpace.load(path)


@pytest.mark.parametrize(
    "text", ["", "[]", "just words", "a: [", "\x00", "name: pocket\nname: x\nmodel", "name: 2001-99-99"]
)
def test_files_that_hold_no_space(tmp_path, text):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}: "):
        SearchSpace.load(path)


BOMB = "\n".join(["a0: &a0 [x]", *(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11))])
MERGES = "\n".join(["m0: &m0 {a: 1}", *(f"m{i}: &m{i} {{<<: [{','.join([f'*m{i - 1}'] * 9)}]}}" for i in range(1, 11))])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (BOMB + "\nname: *a10", "more than 20,000 values"),
        (MERGES + "\nname: *m10", "more than 20,000 values"),
        ("name: &n [*n]", "more than 20,000 values"),
        ("name: " + "[" * 100_000, "nested too deeply"),
        ("name: " + "{a: " * 5000 + "}" * 5000, "nested too deeply"),
        ("name: [" + "x, " * 20_000 + "]", "more than 20,000 values"),
        ("name: " + "9" * 1001, "a number of 1,001 characters"),
        ("name: " + ":".join(["59"] * 100_000), "a number of 299,999 characters"),
        ("name: x" + " " * 4_000_000, "longer than 4,000,000 characters"),
    ],
    ids=["aliases", "merges", "cycle", "lists", "mappings", "values", "digits", "base-60", "blanks"],
)
def test_a_file_that_would_take_all_time_or_memory_is_refused(tmp_path, text, problem):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"^{path}: .*{problem}") as error:
        SearchSpace.load(path)
    assert "\n" not in str(error.value)


def test_a_json_space_that_is_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "space.json"
    for text in ("[" * 100_000, '{"name": "s", "model": "m", "recipe": ' + '{"a": ' * 900 + "1" + "}" * 901):
        path.write_text(text)
        with pytest.raises(InputError, match=rf"^{path}: ") as error:
            SearchSpace.load(path)
        assert "\n" not in str(error.value)


def test_numbers_that_yaml_takes_for_text_are_numbers(tmp_path):
    path = tmp_path / "space.yaml"
    text = POCKET.read_text()
    recipe = {"data_fraction": "[5e-2, '0.5', 1.0, 0.5]", "epochs": "[1e0, 2]", "ratio": "{low: 1e-1, high: '0.6'}"}
    content = yaml.safe_load(text)
    content["recipe"] |= {name: yaml.safe_load(value) for name, value in recipe.items()}
    assert content["recipe"]["data_fraction"][0] == "5e-2"
    path.write_text(yaml.safe_dump(content))
    space = SearchSpace.load(path)
    assert space.values_of("data_fraction") == [0.05, 0.5, 1.0]
    assert space.values_of("epochs") == [1.0, 2.0]
    assert space.values_of("ratio") == [0.1, 0.6]
    assert space.largest_recovery(100) == 200


def test_half_a_character_is_no_text(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(json.dumps({"name": "s", "model": "pocket", "recipe": {"\ud800": None}}))
    with pytest.raises(InputError, match=r"space.yaml: contains '\\ud800', which is not text") as error:
        SearchSpace.load(path)
    assert "\n" not in str(error.value)


def test_a_study_with_a_path_of_any_characters_can_be_read_back(tmp_path):
    """JSON writes a character beyond U+FFFF as two halves, of which YAML makes no whole."""
    space = SearchSpace.load(POCKET).model_copy(update={"data": "\N{COLLISION SYMBOL}"})
    write_json(tmp_path / "space.json", space.model_dump(mode="json"))
    assert SearchSpace.load(tmp_path / "space.json") == space


def test_a_deepspeed_configuration_may_be_a_file_of_its_own(tmp_path):
    content = yaml.safe_load(POCKET.read_text())
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 2}}')
    content["recovery"]["deepspeed"] = str(tmp_path / "ds.json")
    space = SearchSpace.model_validate(content)
    assert space.recovery.deepspeed == {"zero_optimization": {"stage": 2}}
    (tmp_path / "ds.json").write_text("{")
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError, match=r"recovery.deepspeed: .*ds\.json: not a readable JSON file"):
        SearchSpace.load(tmp_path / "space.yaml")


@pytest.mark.parametrize(
    ("change", "uses"),
    [
        ({}, True),
        ({"logits_kd": [0.0], "hidden_kd": [0.0]}, False),
        ({"logits_kd": [0.0], "hidden_kd": {"low": 0.0, "high": 1.0}}, True),
        ({"trained": ["nothing"]}, False),
    ],
)
def test_whether_a_teacher_is_needed(change, uses):
    content = yaml.safe_load(POCKET.read_text())
    content["recipe"] |= change
    assert SearchSpace.model_validate(content).uses_teacher() == uses


def test_a_missing_file_and_a_folder(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        SearchSpace.load(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="can't be read"):
        SearchSpace.load(tmp_path)


def test_paths_that_are_here_are_absolute_and_names_stay(tmp_path, monkeypatch):
    """Workers run in folders of their own; a relative path would mean nothing there."""
    monkeypatch.chdir(tmp_path)
    for name in ("my-model", "pocket", "data"):
        (tmp_path / name).mkdir()
    recipe = {"mode": "layerwise", "ratio": 0.3, "criterion": "deepest"}
    own = {"name": "own", "data": "data", "metric": "exact", "heldout_data": "lab/questions"}
    content = {"name": "x", "model": "my-model", "data": "./data", "benchmarks": [own], "recipe": recipe}
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(content))
    space = SearchSpace.load("space.yaml")
    assert (space.model, space.data) == (str(tmp_path / "my-model"), str(tmp_path / "data"))
    assert (space.benchmarks[0].data, space.benchmarks[0].heldout_data) == (str(tmp_path / "data"), "lab/questions")
    embedded = SearchSpace.model_validate({**content, "model": "pocket", "data": "lab/mix"})
    assert (embedded.model, embedded.data) == ("pocket", "lab/mix")
