"""Wrong input of every kind, and what must come of it: an answer, or one plain line; no traceback, no file touched.

    python tests/support/fuzzing.py 10000 --seed 3   # as many inputs, as many of each kind; minutes of one core

`test_fuzz.py` runs a few of each.
Equal seeds draw equal inputs; without one it is drawn and printed.
"""

import argparse
import contextlib
import copy
import io
import json
import os
import random
import shutil
import tarfile
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import typer
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as with_seed
from hypothesis import strategies as st
from pydantic import ValidationError

from raysearch.cli.app import app
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from tests.support import synthetic_study

LONGEST_S = 20.0
"""An input that takes longer hangs; the first one of a process imports libraries."""
SPACES = [yaml.safe_load(path.read_text()) for path in sorted(synthetic_study.POCKET.parent.glob("pocket*.yaml"))]
RECIPE = {
    "mode": "both",
    "ratio": 0.3,
    "criterion": "block_influence+taylor",
    "trained": "projector+lora",
    "logits_kd": 0.5,
    "hidden_kd": 1.0,
    "lr": 1e-3,
}
FILES = (
    "trials.jsonl",
    "status.json",
    "space.json",
    "layer-importance.json",
    "search-state.json",
    "search-events.jsonl",
    "starts.json",
)
COMMANDS = tuple(name for name, c in typer.main.get_command(app).commands.items() if not c.hidden)
OPTIONS = (
    *("--budget", "--trials", "--out", "--seed", "--slots", "--warm-start", "--resume", "--dry-run", "--json"),
    *("--mlflow", "--uri", "--to", "--finetune", "--epochs", "--mode", "--ratio", "--criterion", "--calibration"),
    *("--compensate", "--like", "--register", "--help", "-b", "--", "--no-such-option"),
)

ODD = st.sampled_from(
    [
        "",
        " ",
        "pocket",
        ".",
        "..",
        "/",
        "~",
        "../../x",
        "/dev/null",
        "a\0b",
        "60%",
        "1e999",
        "nan",
        "-1",
        "\u202e",
        "💥",
        "5e-2",
        "1.0e15",
        10**12,
        "[" * 3000,
        "x" * 3000,
        "\x1b[2J",
    ]
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(10**400), 10**400), st.floats(), ODD, st.text(max_size=20)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.one_of(ODD, st.text(max_size=8)), inner, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def damaged(draw: Callable[..., Any], documents: list[Any]) -> Any:
    """A document that was right, changed at one to three places: another value, another name, something left out."""
    document = copy.deepcopy(draw(st.sampled_from(documents)))
    for _ in range(draw(st.integers(1, 3))):
        at, places = document, []
        while isinstance(at, dict | list) and at:
            keys = sorted(at, key=str) if isinstance(at, dict) else range(len(at))
            places.append((at, draw(st.sampled_from(list(keys)))))
            at = at[places[-1][1]]
        if not places:
            return draw(VALUES)
        holder, key = places[draw(st.integers(0, len(places) - 1))]
        change = draw(st.sampled_from(["value", "value", "name", "gone"]))
        if change == "value":
            holder[key] = draw(VALUES)
        elif change == "gone" or isinstance(holder, list):
            del holder[key]
        else:
            holder[draw(st.text(max_size=8))] = holder.pop(key)
    return document


@st.composite
def spoilt(draw: Callable[..., Any], contents: st.SearchStrategy[Any]) -> bytes:
    """A file whose text or bytes were cut, overwritten or doubled, or left as they were."""
    drawn = draw(contents)
    content = drawn if isinstance(drawn, bytes) else drawn.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        start = draw(st.integers(0, len(content)))
        end = draw(st.integers(start, min(len(content), start + 40)))
        put = draw(st.one_of(st.binary(max_size=12), st.just(content[start:end] * 2), st.just(b"")))
        content = content[:start] + put + content[end:]
    return content


def as_yaml(document: Any) -> str:
    """YAML, also of what YAML can't hold: then JSON, which is YAML, too; an alias bomb for one name."""
    if isinstance(document, dict) and document.get("name") == "💥":
        lists = (f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 11))
        return "\n".join(["a0: &a0 [x]", *lists, "name: *a10", "model: pocket", "recipe: {<<: [*a9, *a9], ratio: *a8}"])
    try:
        return yaml.safe_dump(document, allow_unicode=True)
    except (yaml.YAMLError, ValueError):
        return json.dumps(document)


@contextlib.contextmanager
def workplace() -> Iterator["Workplace"]:
    """An empty folder with a study in it, from which nothing real can be started."""
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.chdir(name))
        environment = {"XDG_CACHE_HOME": f"{name}/cache", "HF_HUB_OFFLINE": "1", "COLUMNS": "120"}
        environment["MLFLOW_TRACKING_URI"] = "http://127.0.0.1:9"
        stack.enter_context(patch.dict(os.environ, environment))
        stack.enter_context(patch("raysearch.backend.search_job.run", lambda *started, **more: None))
        for target in (
            "raysearch.pruning.checkpoint.prune_checkpoint",
            "raysearch.export.export_checkpoint.export_checkpoint",
            "raysearch.export.export_checkpoint.measure_front",
            "raysearch.trials.finetune.finetune",
            "raysearch.trials.answer_table.answer_all",
            "raysearch.data.inspection.inspect_samples",
            "raysearch.tracking.mlflow_runs.connect",
        ):
            stack.enter_context(patch(target, side_effect=InputError("not here")))
        yield Workplace(Path(name))


class Workplace:
    """Where commands are run."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.study = folder, folder / "study"
        synthetic_study.make(self.study, num_trials=8)
        self.front = json.loads((self.study / "front.json").read_text())
        self.whole = folder / "whole"
        shutil.copytree(self.study, self.whole)
        self.statuses: Counter[int] = Counter()
        """How many commands have ended with each exit status."""

    def check(self, *arguments: str, may_write: bool | None = False) -> None:
        """Run a command; its exit status is 0 or 2, and with 2 it has said one line and touched nothing.

        Args:
            may_write: whether it may write files if it succeeds; None: also if it doesn't.
        """
        before, started = self._listing(), time.monotonic()
        out, complaints = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(complaints):
            try:
                app(list(arguments))
                raise AssertionError("a command exits")
            except SystemExit as ended:
                status = ended.code
        seconds = time.monotonic() - started
        said = [line for line in complaints.getvalue().splitlines() if "counting the parameters" not in line]
        assert status in (0, 2), (status, arguments, said)
        assert status == 0 or len(said) == 1, (arguments, said)
        assert "Traceback" not in complaints.getvalue()
        assert seconds < LONGEST_S, (arguments, seconds)
        assert may_write is None or (may_write and status == 0) or self._listing() == before, arguments
        self.statuses[status] += 1

    def take(self, act: Callable[[], Any]) -> None:
        """Call a function; it succeeds, or raises an `InputError` of one printable line."""
        started = time.monotonic()
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                act()
            self.statuses[0] += 1
        except InputError as error:
            said = str(error)
            assert said
            assert "\n" not in said, said
            self.statuses[2] += 1
        assert time.monotonic() - started < LONGEST_S

    def with_file(self, name: str, content: bytes) -> None:
        """Let the study hold one file of this content, and all others as they were."""
        for path in self.whole.iterdir():
            if path.is_file():
                shutil.copy2(path, self.study / path.name)
        for path in self.study.iterdir():
            if path.is_file() and not (self.whole / path.name).exists():
                path.unlink()
        (self.study / name).write_bytes(content)

    def _listing(self) -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in self.folder.rglob("*")
            if path.is_file() and path.relative_to(self.folder).parts[0] != "cache"
        }


def fuzz_spaces(place: Workplace, num: int) -> None:
    """A search space, checked by a dry run."""

    @_many(num)
    @given(spoilt(st.builds(as_yaml, damaged(SPACES))))
    def one(content: bytes) -> None:
        path = place.folder / "space.yaml"
        path.write_bytes(content)
        place.check("search", str(path), "--dry-run")

    one()


def fuzz_recipes(num: int) -> Counter[str]:
    """A recipe, and its way through a text and back; how many were taken and how many refused."""
    found: Counter[str] = Counter()

    @_many(num)
    @given(damaged([RECIPE, {**RECIPE, "mode": "layerwise", "criterion": "deepest", "trained": "projector"}]))
    def one(fields: Any) -> None:
        try:
            recipe = Recipe.model_validate(fields)
        except ValidationError:
            found["refused"] += 1
            return
        found["taken"] += 1
        again = Recipe.model_validate(yaml.safe_load(yaml.safe_dump(recipe.as_dict())))
        assert again.key == recipe.key
        assert recipe.samples_to_see(100) >= 0
        assert recipe.describe()

    one()
    return found


def fuzz_values(place: Workplace, num: int) -> None:
    """Values in a form of their own: budgets, durations, addresses of clusters; and recipes in files."""
    from raysearch.backend import cluster
    from raysearch.config.budget import Budget
    from raysearch.config.duration import parse_duration
    from raysearch.config.space import load_recipe

    path = place.folder / "recipe.yaml"

    def join(address: str) -> None:
        with patch.dict(os.environ, {"RAY_ADDRESS": address}), patch("ray.init", side_effect=OSError("not here")):
            cluster._start()

    parts = ["60%", "memory 3GB @ {tokens: 4096}", "kv_cache 2MB", "phone: ", ", ", "1h30m", "127.0.0.1", "[::1]", ":"]
    texts = st.lists(
        st.one_of(st.sampled_from([*parts, "9", "99999", "²", "ray://", "1e9", "B"]), ODD.map(str)), max_size=4
    )
    budgets = damaged([{"memory": "3GB", "tokens": 9}, {"name": "x", "kv_cache": "1MB", "batch": 2}])
    recipes = spoilt(st.builds(as_yaml, damaged([RECIPE, {"recipe": RECIPE}])))

    @_many(num)
    @given(texts.map("".join).filter(lambda text: "\0" not in text), budgets, recipes)
    def one(text: str, budget: Any, recipe: bytes) -> None:
        path.write_bytes(recipe)
        for read, value in ((Budget.parse, text), (Budget.parse, budget), (parse_duration, text), (join, text)):
            place.take(lambda read=read, value=value: read(value))
        place.take(lambda: load_recipe(path))

    one()


def fuzz_fronts(place: Workplace, num: int) -> None:
    """A front, asked for an answer."""

    @_many(num)
    @given(spoilt(st.builds(json.dumps, damaged([place.front]))), st.sampled_from(["60%", "1GB", "100%", "1B"]))
    def one(content: bytes, budget: str) -> None:
        place.with_file("front.json", content)
        place.check("best", str(place.study), "--budget", budget, "--json")
        place.check("best", str(place.study), "--budget", budget)

    one()


def fuzz_study_files(place: Workplace, num: int) -> None:
    """A file of a study, read by a resumed search, by an estimate and by the report."""
    lines = [json.loads(line) for line in (place.whole / "trials.jsonl").read_text().splitlines()]
    events = [[1, "recipes", "suggest", "t0"], [2, "rungs", "revive", "t0"]]
    contents = {
        "trials.jsonl": lines,
        "search-events.jsonl": events,
        "status.json": {"started": 1.0, "stage": {"state": "training"}, "slots": [{"state": "loading", "reason": "x"}]},
        "space.json": json.loads((place.whole / "space.json").read_text()),
        "layer-importance.json": {"deepest": [0.1, 0.2]},
        "search-state.json": {"num_events": 1, "searcher": {}, "scheduler": {}},
        "starts.json": [{"began": 1.0, "ended": 2.0, "command": "raysearch search", "versions": {"ray": "2"}}],
    }

    @_many(num)
    @given(st.data(), st.sampled_from(FILES))
    def one(data: st.DataObject, name: str) -> None:
        as_text = _as_lines if name.endswith("l") else json.dumps
        content = data.draw(spoilt(st.builds(as_text, damaged([contents[name]]))))
        place.with_file(name, content)
        place.check("search", "--resume", str(place.study), "--dry-run")
        place.check("estimate", str(synthetic_study.POCKET), "--like", str(place.study))
        place.check("status", str(place.study))
        if data.draw(st.integers(0, 9)) == 0:
            place.check("report", str(place.study), may_write=True)

    one()


def fuzz_tracking(place: Workplace, num: int) -> None:
    """Files of a study about MLflow, and a server's replies."""
    sent = {"uri": "http://127.0.0.1:9", "runs": {"": "id", "0123456789": "id"}, "ended": ["0123456789"]}
    events = [
        {"run": None, "time": 1, "name": "a", "params": {"b": 1}, "files": ["front.json"], "documents": {"a.json": {}}},
        {"run": "0123456789", "time": 2, "metrics": {"c": 0.5}, "step": 3, "status": "FINISHED", "final": True},
    ]
    fields = {name: str(value) for name, value in RECIPE.items()}
    run = {
        "params": fields,
        "metrics": {"size_bytes": 1e6, "retention": 0.5},
        "tags": {"raysearch.folder": str(place.study), "end": "finished"},
        "info": {"run_id": "id", "artifact_uri": "file:///tmp", "experiment_id": "1", "lifecycle_stage": "active"},
    }
    names = [("search", str(synthetic_study.POCKET), "--dry-run", "--warm-start", "x"), ("sync", str(place.study))]
    names.append(("best", "--mlflow", "x", "--budget", "60%"))

    @_many(num)
    @given(st.data(), st.sampled_from(names))
    def one(data: st.DataObject, command: tuple[str, ...]) -> None:
        name = data.draw(st.sampled_from(["mlflow.json", "mlflow-unsent.jsonl"]))
        content = st.builds(
            *((json.dumps, damaged([sent])) if name == "mlflow.json" else (_as_lines, damaged([events])))
        )
        place.with_file(name, data.draw(spoilt(content)))
        client = _Client(data, damaged([run]), spoilt(st.builds(json.dumps, damaged([place.front]))))
        with (
            patch("raysearch.tracking.mlflow_runs.connect", return_value=client),
            patch("raysearch.tracking.lookup.connect", return_value=client),
        ):
            place.check(*command, may_write=None if command[0] == "sync" else False)

    one()


class _Client:
    """An MLflow client whose server replies anything."""

    def __init__(self, data: st.DataObject, runs: st.SearchStrategy[Any], files: st.SearchStrategy[bytes]) -> None:
        self._data, self._runs, self._files = data, runs, files

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *arguments, **more: self._reply(method)

    def _reply(self, method: str) -> Any:
        drawn = self._data.draw(st.sampled_from(["right", "right", "right", "value", "error"]))
        if drawn == "error":
            raise OSError(self._data.draw(st.text(max_size=20)))
        if drawn == "value":
            return self._data.draw(VALUES)
        if method.startswith(("search", "list")):
            found = [self._run(), self._run()] if method != "list_artifacts" else [SimpleNamespace(path="front.json")]
            return _Page(found)
        return self._run()

    def _run(self) -> Any:
        run = self._data.draw(self._runs)
        if not isinstance(run, dict):
            return run
        parts = {name: run.get(name) for name in ("params", "metrics", "tags")}
        info = run.get("info")
        about = SimpleNamespace(**info) if isinstance(info, dict) and all(map(str.isidentifier, info)) else info
        return SimpleNamespace(data=SimpleNamespace(**parts), info=about, **(info if isinstance(info, dict) else {}))

    def download_artifacts(self, run_id: Any, name: str, folder: str) -> None:
        """A file of any content."""
        (Path(folder) / name).write_bytes(self._data.draw(self._files))


class _Page(list[Any]):
    """The last page of a search."""

    token = ""


def _as_lines(rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows) if isinstance(rows, list) else json.dumps(rows)


def fuzz_command_lines(place: Workplace, num: int) -> None:
    """Commands, options and values in any order."""
    place.with_file("note", b"mine")
    names = st.sampled_from([str(place.study), str(place.folder / "nowhere"), str(synthetic_study.POCKET)])
    words = st.one_of(st.sampled_from(OPTIONS), names, ODD.map(str), st.text(max_size=10), st.integers().map(str))

    @_many(num)
    @given(st.sampled_from(COMMANDS), st.lists(words, max_size=7))
    def one(command: str, arguments: list[str]) -> None:
        place.check(command, *arguments, may_write=command in ("report", "sync"))

    one()


DATA_ROWS = [
    {
        "id": "1",
        "image": "a.png",
        "conversations": [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "yes"}],
    },
    {
        "images": ["a.png"],
        "messages": [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "yes", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        ],
    },
]
QUESTION = {"id": 1, "question": "q?", "answer": "A", "image": "a.png", "options": ["x", "y"], "category": "c"}
QUESTIONS = [QUESTION, {**QUESTION, "answers": ["a", "b"]}, {**QUESTION, "options": {"A": "x", "B": "y"}}]


def fuzz_data(place: Workplace, num: int) -> None:
    """A file of data of any kind, and all of its rows and pictures."""
    from raysearch.data.bad_rows import BadRow
    from raysearch.data.loading import load_samples
    from raysearch.data.pictures import open_image

    folder = place.folder / "data"
    _with_picture(folder)
    rows = st.lists(damaged(DATA_ROWS), min_size=1, max_size=3)
    whole = {end: write(folder) for end, write in _DATA_FILES.items()}
    contents = {
        "jsonl": st.builds(_as_lines, rows),
        "json": st.builds(json.dumps, rows),
        "csv": st.builds(lambda drawn: "image,messages\na.png,{}\n".format(json.dumps(drawn).replace('"', '""')), rows),
        **{end: st.just(content) for end, content in whole.items()},
    }

    @_many(num)
    @given(st.data(), st.sampled_from(sorted(contents)), st.sampled_from(["", "", ".gz", "UPPER"]))
    def one(data: st.DataObject, end: str, more: str) -> None:
        name = f"rows.{end}"
        path = folder / (name.upper() if more == "UPPER" else name + more)
        path.write_bytes(data.draw(spoilt(contents[end])))

        def read() -> None:
            for sample in load_samples(path):
                for image in sample.images:
                    with contextlib.suppress(BadRow):
                        open_image(image)

        place.take(read)
        path.unlink()

    one()


def fuzz_pictures(place: Workplace, num: int) -> None:
    """A picture's bytes."""
    from PIL import Image

    from raysearch.data.pictures import open_image, picture_from

    made = []
    for kind in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "DDS"):
        stream = io.BytesIO()
        Image.effect_noise((37, 29), 50).convert("P" if kind == "GIF" else "RGB").save(stream, kind)
        made.append(stream.getvalue())

    @_many(num)
    @given(spoilt(st.sampled_from(made)))
    def one(content: bytes) -> None:
        place.take(lambda: open_image(picture_from(content)))

    one()


def fuzz_questions(place: Workplace, num: int) -> None:
    """A benchmark's rows, and a response to each of them."""
    from raysearch.config.benchmarks import BenchmarkConfig
    from raysearch.evaluation.metrics import METRICS
    from raysearch.evaluation.questions import read_questions

    folder = place.folder / "questions"
    _with_picture(folder)
    rows = st.lists(damaged(QUESTIONS), min_size=1, max_size=2)

    @_many(num)
    @given(spoilt(st.builds(_as_lines, rows)), st.sampled_from(sorted(METRICS)), st.text(max_size=20))
    def one(content: bytes, metric: Any, response: str) -> None:
        (folder / "rows.jsonl").write_bytes(_as_lines([QUESTION] * 300).encode() + content)
        entry = BenchmarkConfig(name="b", data=str(folder / "rows.jsonl"), metric=metric)

        def read() -> None:
            questions = read_questions(entry, "search")
            METRICS[metric].values([response] * len(questions), questions)

        place.take(read)

    one()


def fuzz_model_folders(place: Workplace, num: int) -> None:
    """A model's folder, counted."""
    from raysearch.models.param_count_cache import counts_of_model
    from tests.support.tiny_models import FAMILIES

    whole, folder = place.folder / "model-whole", place.folder / "model"
    FAMILIES["llava_llama"].model().save_pretrained(whole)
    config, names = json.loads((whole / "config.json").read_text()), sorted(path.name for path in whole.iterdir())
    shutil.copytree(whole, folder)

    @_many(num)
    @given(st.data(), st.sampled_from(["config.json", "config.json", *names]))
    def one(data: st.DataObject, name: str) -> None:
        for other in names:
            (folder / other).unlink(missing_ok=True)
            os.link(whole / other, folder / other)
        (folder / name).unlink()
        text = st.builds(json.dumps, damaged([config]))
        contents = text if name == "config.json" else st.just((whole / name).read_bytes())
        (folder / name).write_bytes(data.draw(spoilt(contents)))
        place.take(lambda: counts_of_model(str(folder)))

    one()


def _with_picture(folder: Path) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "a.png")


def _parquet(folder: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(DATA_ROWS[:1] * 3), folder / "whole")
    return (folder / "whole").read_bytes()


def _tar(folder: Path) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for end, content in (("json", json.dumps(DATA_ROWS[0]).encode()), ("png", (folder / "a.png").read_bytes())):
            entry = tarfile.TarInfo(f"0001.{end}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


_DATA_FILES = {"parquet": _parquet, "tar": _tar}


def _many(num: int) -> Callable[[Any], Any]:
    def decorate(test: Any) -> Any:
        return with_seed(SEED[0])(drawing(test))

    drawing = settings(
        max_examples=num,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    return decorate


def fuzz_all(num: int, name: str | None = None) -> None:
    """`num` inputs, as many of each kind; of one if `name` says which."""
    each = num if name else -(-num // (1 + len(KINDS)))
    if not name:
        found = fuzz_recipes(each)
        print(f"fuzz_recipes: {each} inputs, {found['refused']} refused", flush=True)
    with workplace() as place:
        for kind in (kind for kind in KINDS if name in (None, kind.__name__.removeprefix("fuzz_"))):
            place.statuses.clear()
            started = time.monotonic()
            kind(place, each)
            ended = f"{place.statuses[0]} commands ended with 0, {place.statuses[2]} with 2"
            print(f"{kind.__name__}: {each} inputs, {ended}; {time.monotonic() - started:.0f} s", flush=True)


KINDS = (
    fuzz_spaces,
    fuzz_values,
    fuzz_fronts,
    fuzz_study_files,
    fuzz_tracking,
    fuzz_command_lines,
    fuzz_data,
    fuzz_pictures,
    fuzz_questions,
    fuzz_model_folders,
)
SEED = [0]
"""What all inputs are drawn from."""

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("num", type=int, help="inputs")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--kind", help="only this one, such as data")
    options = parser.parse_args()
    SEED[0] = options.seed
    print(f"seed {options.seed}", flush=True)
    fuzz_all(options.num, options.kind)
