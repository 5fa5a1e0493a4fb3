"""The report is one self-contained page: what it says, from what, and in how many bytes."""

import base64
import gzip
import json
import re
from dataclasses import replace

import pytest

from raysearch.config.dimensions import Range
from raysearch.config.recipe import Recipe
from raysearch.errors import InputError
from raysearch.report import html_page, param_importance
from raysearch.report.dimensions import axes_of, parallel_lines, slices
from raysearch.report.effects import left_at_equal_size
from raysearch.report.findings import Finding
from raysearch.report.html_page import PageContent, report_html, write_report
from raysearch.report.next_space import changes
from raysearch.report.outlook import read_forecast
from raysearch.report.palette import COLOURS, DARK, GRID, LINES, PAGE, contrast
from raysearch.study.examples import Examples, read_examples
from raysearch.study.front import Baseline, Front
from raysearch.study.provenance import Start, note_start, read_starts
from raysearch.study.records import Score, TrialRecord
from tests.support import synthetic_study


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    study = synthetic_study.make(tmp_path_factory.mktemp("study") / "run")
    synthetic_study.illustrate(study)
    write_report(study.folder)
    return study


@pytest.fixture(scope="module")
def page(study):
    return (study.folder / "report.html").read_text()


def data_of(page):
    """What the page's script reads: figures, and trials by column."""
    packed = re.search(r'id="data">([^<]+)<', page)[1]
    return json.loads(gzip.decompress(base64.b64decode(packed)))


def text_of(page):
    """The page without its packed parts, style and script."""
    return re.sub(r"<(script|style)[^>]*>.*?</\1>", "", page, flags=re.DOTALL)


def content_of(study, **changes):
    return replace(PageContent(study.front, study.records), **changes)


def test_the_page_needs_no_network(page):
    assert not re.search(r"<(script|link|img|iframe)[^>]+(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert "fetch(" not in re.sub(r"async function replaceParts|function follow.*?\n}", "", page, flags=re.DOTALL)


def test_the_answers_come_first_with_what_was_kept_and_a_command(study, page):
    text = text_of(page)
    assert text.index('<h2 id="answers-title"') < min(
        text.index(f'<h2 id="{name}-title"') for name in ("front", "trials")
    )
    points = {point.key: point for point in study.front.points}
    for budget, key in study.front.budgets.items():
        card = re.search(rf"<h3>Within {budget}</h3>.*?</article>", text, re.DOTALL)[0]
        if key is None:
            assert "No finished recipe is that small" in card
            continue
        heldout = points[key].heldout
        low, high = (100 * bound for bound in heldout.retention_ci)
        assert f"<b>{heldout.retention:.1%}</b> kept [{low:.1f} to {high:.1f}%]" in card
        assert "on 600 questions that the search never saw" in card
        assert f"{1 / points[key].size_ratio:.2f} times smaller" in card
        assert f"prefill {1 / points[key].size_ratio:.2f} times as fast" in card
        assert f"raysearch export {study.folder} --budget {budget} --to synthetic-{budget[:-1]}pct" in card


def test_what_was_not_asked_or_measured_is_said(study):
    bare = [point.model_copy(update={"heldout": None, "measured": None}) for point in study.front.points]
    text = text_of(report_html(content_of(study, front=study.front.model_copy(update={"points": bare}))))
    assert "held-out questions have not been asked yet" in text
    assert "raysearch search --resume DIR" in text
    assert "not measured; <code>" in text


def test_commands_can_be_pasted_whatever_the_folder_is_called(study):
    odd = study.folder.parent / "it's; rm -rf"
    text = text_of(report_html(content_of(study, folder=odd)))
    quoted = "export &#39;" + str(odd.parent) + "/it&#39;&#34;&#39;&#34;&#39;s; rm -rf&#39; --budget"
    assert quoted in text


def test_questions_that_are_answered_otherwise_are_shown_beside_each_other(study, page):
    text = text_of(page)
    answers = [key for key in dict.fromkeys(study.front.budgets.values()) if key]
    assert text.count('<article class="example">') == 10 * min(len(answers), html_page.MAX_SHOWN_EXAMPLES)
    assert "of 600 held-out questions the\npruned model scores lower on 31 and higher on 9" in text
    first = re.search(r'<article class="example">.*?</article>', text, re.DOTALL)[0]
    example = synthetic_study.examples(0).examples[0]
    assert example.picture in first, "the first budget's answer"
    assert re.search(
        rf"Dense, scores 0</dt><dd>{example.dense}</dd>.*Pruned, scores 1</dt><dd>{example.pruned}</dd>",
        first,
        re.DOTALL,
    )


def test_preliminary_scores_stand_apart(study, page):
    data = data_of(page)
    ends = {record.key: record.end for record in study.records}
    trials = data["trials"]
    assert trials["key"] == [record.key for record in study.records]
    for key, whole, preliminary in zip(trials["key"], trials["retention"], trials["preliminary"], strict=True):
        assert (whole is None, preliminary is None) == (ends[key] != "finished", ends[key] != "stopped")
    for name, expected in (("front-plot", {"finished"}), ("stopped", {"stopped"})):
        texts = [text for trace in data["figures"][name]["data"] for text in trace.get("text") or []]
        shown = {ends[text[3:13]] for text in texts}
        assert shown == expected, name


def test_names_and_reasons_are_text_and_secrets_masked(study):
    nasty = "<img src=x onerror=alert(1)>"
    front = study.front.model_copy(update={"study": nasty, "model": "https://me:pw@host/m"})
    front = front.model_copy(update={"baseline": front.baseline.model_copy(update={"scores": {nasty: 0.5}})})
    records = [r.model_copy(update={"reason": f"{nasty} hf_abcdefghijklmnopqrstuv"}) for r in study.records]
    start = Start(command=nasty)
    page = report_html(content_of(study, front=front, records=records, starts=[start], layers={nasty: [1.0, 2.0]}))
    assert nasty not in page
    data = data_of(page)
    assert nasty not in json.dumps(data["figures"])
    assert nasty in data["trials"]["reason"][3]  # set as text by the script
    for secret in ("pw@", "hf_abcdefghijklmnopqrstuv"):
        assert secret not in page + json.dumps(data)


def test_a_study_of_few_trials_or_none_has_a_page(tmp_path):
    small = synthetic_study.make(tmp_path / "run", num_trials=3, fail=False)
    text = text_of(report_html(content_of(small)))
    assert "too few to estimate" in text
    assert "Too few full runs have ended to tell" in text
    empty = Front.build("none", "pocket", synthetic_study.BASELINE, [])
    assert "No budget was asked for" in text_of(report_html(PageContent(empty, [])))


def test_samples_of_many_trials_are_said_to_be_such(study, monkeypatch):
    num_scored = sum(bool(record.rungs) for record in study.records)
    monkeypatch.setattr("raysearch.report.front_info.MAX_TRIALS_DRAWN", 5)
    monkeypatch.setattr("raysearch.report.charts.MAX_CURVES", 4)
    text = text_of(report_html(content_of(study)))
    assert f"5 of {num_scored} trials are shown, evenly spread over the search." in text
    assert f"4 of {len(study.records)} trials are shown" in text
    assert "evenly spread over the search" not in text_of(report_html(content_of(study, records=[])))


def test_twenty_thousand_trials_fit_into_5_MB(study, page):
    many = [
        record.model_copy(update={"key": f"{number:010x}"})
        for number, record in enumerate(study.records * (20_000 // len(study.records)))
    ]
    table = html_page._trial_table(content_of(study, records=many))
    assert len(table["key"]) == 20_000
    assert len(page) + len(html_page._packed(json.dumps(table))) < 4_000_000, "beside a million for the samples drawn"


def test_every_colour_can_be_seen_on_its_page():
    for light, dark in DARK.items():
        if light not in (GRID, PAGE):
            assert contrast(light, PAGE) >= 3, light
            assert contrast(dark, DARK[PAGE]) >= 3, dark
    assert contrast("#000000", "#ffffff") == pytest.approx(21)


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
PROTANOPIA = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
DEUTERANOPIA = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]


@pytest.mark.parametrize("seen", [PROTANOPIA, DEUTERANOPIA])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_modes_and_lines_are_distinct_for_colour_blind_readers(seen, scheme):
    import numpy as np

    def lab(colour):
        raw = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        linear = np.where(raw <= 0.04045, raw / 12.92, ((raw + 0.055) / 1.055) ** 2.4)
        linear = np.clip(np.array(seen) @ linear, 0, 1)
        xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
        f = np.cbrt(xyz / np.array([0.9505, 1.0, 1.089]))
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for group in (list(COLOURS.values()), list(LINES[:4])):
        found = [lab(DARK[colour] if scheme == "dark" else colour) for colour in group]
        distances = [np.linalg.norm(a - b) for i, a in enumerate(found) for b in found[:i]]
        assert min(distances) > 10, (scheme, distances)  # 2.3 is just noticeable


def record_of(key, ratio, retention, end="finished", **recipe):
    made = Recipe(mode="widthwise", ratio=ratio, criterion="taylor", **recipe)
    score = Score(samples_seen=64, retention=retention, retention_se=0.01, scores={"qa": retention})
    size = round(1000 * (1 - ratio))
    return TrialRecord(
        trial=key, key=key, recipe=made, num_params=size, size_bytes=size, rungs=[score], end=end, seconds=1.0
    )


DENSE = Baseline(num_params=1000, size_bytes=1000, scores={"qa": 1.0})


def test_slices_compare_at_equal_size():
    """Retention falls linearly with the ratio, and the learning rate 3e-4 adds 4 points at every size."""
    records = [
        record_of(f"{number:x}", ratio, 1 - 0.5 * ratio + 0.04 * (lr == 3e-4), lr=lr)
        for number, (ratio, lr) in enumerate((0.1 * i, lr) for i in range(1, 8) for lr in (1e-4, 3e-4))
    ]
    left = left_at_equal_size(records, DENSE)
    assert left == pytest.approx([-0.02, 0.02] * 7)
    (found,) = slices(records, DENSE)
    assert found.axis.name == "lr"
    assert found.means["0.0003"][0] == pytest.approx(0.02)
    assert found.means["0.0001"] == pytest.approx((-0.02, -0.02, -0.02))
    stopped = [record.model_copy(update={"end": "stopped"}) for record in records]
    assert slices(stopped, DENSE) == []


def test_parallel_axes_have_every_level_and_both_outcomes():
    records = [record_of(*row, lr=1e-3) for row in (("a", 0.2, 0.9), ("b", 0.6, 0.7))]
    records[1] = records[1].model_copy(update={"recipe": records[1].recipe.model_copy(update={"trained": "decoder"})})
    front = Front.build("s", "m", DENSE, [])
    axes, lines = parallel_lines(front, records)
    assert [axis.name for axis in axes] == ["ratio", "trained", "size", "retention"]
    assert axes[1].levels == ("decoder", "projector+decoder")
    assert lines[0].places == pytest.approx((0.0, 1.0, 1.0, 1.0))
    assert lines[1].places == pytest.approx((1.0, 0.0, 0.0, 0.0))
    assert axes_of([records[0]]) == []
    assert parallel_lines(front, []) == ([], [])


def test_importance_is_told_from_chance():
    """The learning rate decides, the criterion's data fraction doesn't; shuffled, nothing does."""
    import numpy as np

    random = np.random.default_rng(0)
    rates, fractions = random.uniform(1e-4, 1e-2, 60), random.uniform(0.1, 1, 60)
    sizes = random.uniform(0.1, 0.6, 60)
    records = [
        record_of(f"{i:x}", size, 0.8 - 0.3 * size + 20 * rate, lr=rate, data_fraction=fraction)
        for i, (size, rate, fraction) in enumerate(zip(sizes, rates, fractions, strict=True))
    ]
    found = param_importance.for_retention(records, DENSE)
    assert found.num_trials == 60
    assert [one.name for one in found.dimensions] == ["lr", "data_fraction"]
    decides, other = found.dimensions
    assert decides.low > 0.7
    assert decides.low <= decides.share <= decides.high <= 1
    assert other.share < found.chance
    assert param_importance.for_front(records[:9], DENSE) is None


def test_changes_for_the_next_space(study):
    """Half of the front at the upper end of a range; one criterion worse than another."""
    chosen = [Range(low=1e-4, high=1e-2, log=True), Range(low=1e-7, high=1e-1, when={"trained": "no such part"})]
    space = study.space.model_copy(update={"recipe": study.space.recipe | {"lr": chosen}})
    rates = [9e-3, 1e-3] * 9
    recipes = [point.recipe.model_copy(update={"lr": lr}) for point, lr in zip(study.front.points, rates, strict=False)]
    points = [p.model_copy(update={"recipe": recipe}) for p, recipe in zip(study.front.points, recipes, strict=True)]
    front = study.front.model_copy(update={"points": points[: len(points) // 2 * 2]})
    value = space.values_of("criterion")[0]
    worse = Finding("Criterion: a retains more than it.", "...", "significant", ("criterion", value))
    found = changes(space, front, [worse, Finding("b", "...", "inconclusive")])
    assert [(change.key, change.text) for change in found] == [
        ("recipe.lr", "let it go above 0.01"),
        ("recipe.criterion", f"leave out {value}"),
    ]
    assert changes(space, front.model_copy(update={"points": points[:3]}), []) == []


def test_starts_are_noted_once_each(tmp_path):
    first, second = Start(began=1.0, num_slots=2), Start(began=2.0)
    for start in (first, second, first.model_copy(update={"ended": 5.0})):
        note_start(tmp_path, start)
    assert [(s.began, s.ended, s.num_slots) for s in read_starts(tmp_path)] == [(1.0, 5.0, 2), (2.0, None, 1)]
    assert first.versions["torch"]
    assert first.memory_bytes > 10**8


@pytest.mark.parametrize(
    ("name", "content", "read"),
    [
        ("starts.json", '[{"began": "yesterday"}]', read_starts),
        ("forecast.json", '{"num_ended": 3}', read_forecast),
        ("examples/ab.json", "[]", lambda folder: read_examples(folder, "ab")),
        (
            "examples/ab.json",
            json.dumps(
                {
                    "num_questions": 1,
                    "num_better": 0,
                    "num_worse": 1,
                    "examples": [
                        {"benchmark": "a", "question": "b", "expected": [], "dense": "", "pruned": "", "dense_score": 1,
                         "pruned_score": 0, "picture": "https://example.org/a.png"}
                    ],
                }
            ),
            lambda folder: read_examples(folder, "ab"),
        ),
    ],
)  # fmt: skip
def test_a_damaged_file_is_named(name, content, read, tmp_path):
    assert not read(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}.*; delete it") as error:
        read(tmp_path)
    assert "\n" not in str(error.value)


def test_examples_are_bounded():
    example = synthetic_study.examples(0).examples[0]
    with pytest.raises(ValueError, match="at most 10"):
        Examples(num_questions=20, num_better=11, num_worse=0, examples=[example] * 11)
    with pytest.raises(ValueError, match="picture"):
        type(example).model_validate(example.model_dump() | {"picture": "data:image/png;base64," + "A" * 40_000})
