"""Questions about one image joined in one row get the answers that each gets alone."""

import dataclasses
import random
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForImageTextToText

from raysearch import models
from raysearch.config.settings import EMBEDDED_BENCHMARKS
from raysearch.data.encoding import Encoder, collate, to_model
from raysearch.data.labels import IGNORED, answer_labels, answer_states
from raysearch.evaluation import evaluator, shared_prefix
from raysearch.evaluation.benchmarks import load_benchmarks
from raysearch.evaluation.evaluator import evaluate
from raysearch.models import family_for
from raysearch.models.pruned_config import shape_of
from raysearch.pruning import prune
from raysearch.pruning.importance import importance
from tests.support.tiny_models import FAMILIES, IMAGE

HONOURING = {
    "llava_llama", "llava_qwen3", "bunny", "mini_internvl", "internvl", "llava_next", "llava_onevision", "idefics3",
    "smolvlm", "mistral3", "llama", "qwen2", "qwen3", "phi", "phi3", "gemma", "smollm3", "granite", "olmo2",
}  # fmt: skip
"""The others have a sliding window, multi-axis positions, or bidirectional attention within images."""
KEEPING = HONOURING | {"qwen2_vl", "qwen2_5_vl", "qwen3_vl"}
"""The others have a sliding window, bidirectional attention within images, or states instead of a KV cache."""
TAIL = 8


def row(ids, num_answer=2, **pictures):
    """An encoded row whose last tokens are the answer."""
    ids = torch.tensor(ids)
    labels = ids.clone()
    labels[: len(ids) - num_answer] = IGNORED
    pictures = {key: torch.as_tensor(value) for key, value in pictures.items()}
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels, **pictures}


def questions_of(tiny):
    """Three rows of one sample of a family, of unlike lengths, that differ in what stands behind the picture."""
    batch = tiny.batch(1, padded=False)
    draw = torch.Generator().manual_seed(1)
    rows = []
    for length in (20, 19, 18):
        made = {key: value[0][:length] if key in shared_prefix.TOKEN_KEYS else value for key, value in batch.items()}
        made["input_ids"] = made["input_ids"].clone()
        made["input_ids"][20 - TAIL :] = torch.randint(5, 80, (length - 20 + TAIL,), generator=draw)
        rows.append(made)
    return rows


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_joined_rows_as_alone_or_is_told(name):
    model, rows = FAMILIES[name].model(), questions_of(FAMILIES[name])
    family = family_for(model)
    encoder = SimpleNamespace(collate=partial(collate, pad_id=0, one_entry_per_row=name in ("idefics3", "smolvlm")))

    @torch.inference_mode()
    def logits(batch):
        return family.lm_head(model)(answer_states(model, batch))

    assert shared_prefix.honours_mask(logits, encoder, rows) == (name in HONOURING)
    if name in HONOURING:
        # two groups of unlike length, so that one is padded
        joined = logits(shared_prefix.joined_batch(encoder, [rows[1:], rows]))
        alone = torch.cat([logits(encoder.collate([one])) for one in (*rows[1:], *rows)])
        torch.testing.assert_close(joined, alone, rtol=1e-4, atol=1e-4 * float(alone.abs().max()))


@pytest.mark.parametrize("name", FAMILIES)
@torch.inference_mode()
def test_a_family_goes_on_from_a_kept_prefix_as_from_the_whole_prompt_or_is_told(name):
    model = FAMILIES[name].model().eval()
    prompts = [{key: value for key, value in row.items() if key != "labels"} for row in questions_of(FAMILIES[name])]
    one_entry = name in ("idefics3", "smolvlm")
    encoder = SimpleNamespace(collate=partial(collate, pad_id=0, one_entry_per_row=one_entry), pad_id=0)
    assert shared_prefix.keeps_prompts(model, encoder, prompts) == (name in KEEPING)
    if name not in KEEPING:
        return

    def generated(inputs):
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=4, min_new_tokens=4, pad_token_id=0)
        return tokens[:, inputs["input_ids"].shape[1] :].tolist()

    groups = [prompts[1:], prompts, prompts[:1]]  # of unlike length before and behind
    kept = generated(shared_prefix.kept_prompts(model, encoder, groups))
    alone = [generated(to_model(encoder.collate([one]), model))[0] for group in groups for one in group]
    assert kept == alone


def test_labels_of_a_joined_row_are_those_of_its_rows_in_order():
    rows = [row([1, IMAGE, 3, 4, 5, 6]), row([1, IMAGE, 3, 7, 8], 1), row([1, IMAGE, 9, 10], 1)]
    batch = shared_prefix.joined_batch(SimpleNamespace(collate=partial(collate, pad_id=0)), [rows])
    assert batch["input_ids"].tolist() == [[1, IMAGE, 3, 4, 5, 6, 3, 7, 8, 9, 10]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 3, 4, 5, 2, 3, 4, 2, 3]]
    assert answer_labels(batch).tolist() == [5, 6, 8, 10]
    sees = batch["attention_mask"][0, 0] == 0
    assert [seen.nonzero().flatten().tolist() for seen in sees] == [
        [0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 5],
        [0, 1, 6], [0, 1, 6, 7], [0, 1, 6, 7, 8], [0, 1, 9], [0, 1, 9, 10],
    ]  # fmt: skip


def test_rows_that_differ_in_nothing_but_the_answer_keep_a_token_to_predict_it():
    rows = [row([1, IMAGE, 3, 4, 5], 1), row([1, IMAGE, 3, 4, 6], 1)]
    batch = shared_prefix.joined_batch(SimpleNamespace(collate=partial(collate, pad_id=0)), [rows])
    assert batch["input_ids"].tolist() == [[1, IMAGE, 3, 4, 5, 4, 6]]
    assert answer_labels(batch).tolist() == [5, 6]
    assert (batch["labels"][:, [0, 3, 5]] == IGNORED).all()


def test_only_rows_of_the_same_pictures_behind_the_same_tokens_are_joined():
    def groups(*rows, ids="aaaaaaaa", token=IMAGE, longest=None):
        return shared_prefix.group_by_prefix(rows, ids[: len(rows)], token, longest)

    one = row([1, IMAGE, 2, 3, 4], pixel_values=[1.0, 2.0])
    assert groups(one, one, one) == [[0, 1, 2]]
    assert groups(one, one, one, ids="aba") == [[0, 2], [1]]
    assert groups(one, row([1, IMAGE, 9, 3], 1, pixel_values=[1.0, 2.0])) == [[0, 1]]
    assert groups(one, row([1, IMAGE, 2, 3, 4], pixel_values=[1.0, 2.5])) == [[0], [1]]
    assert groups(one, row([1, IMAGE, 2, 3, 4], pixel_values=[1.0, 2.0, 3.0])) == [[0], [1]]
    assert groups(one, row([1, IMAGE, 2, 3, 4])) == [[0], [1]]
    assert groups(one, row([9, IMAGE, 2, 3, 4], pixel_values=[1.0, 2.0])) == [[0], [1]]
    assert groups(one, row([1, IMAGE, 2, IMAGE, 3, 4], pixel_values=[1.0, 2.0])) == [[0], [1]]
    before = row([1, IMAGE, 2, IMAGE], 3, pixel_values=[1.0])
    assert groups(before, before) == [[0], [1]], "an answer before a picture"
    assert groups(one, one, token=None) == [[0], [1]]
    assert groups(row([1, 2, 3, 4]), row([1, 2, 3, 4])) == [[0], [1]], "no picture"
    assert groups(one, one, one, longest=8) == [[0, 1], [2]]
    most = shared_prefix.MAX_QUESTIONS_PER_ROW
    assert [len(g) for g in groups(*[one] * (most + 2), ids="a" * (most + 2))] == [most, 2]


@pytest.fixture(scope="module")
def embedded():
    model, processor = models.load("pocket")
    return model.eval(), Encoder(processor, family_for(model), 256)


def test_all_questions_are_answered_as_alone(embedded):
    stored, encoder = embedded
    model = AutoModelForImageTextToText.from_config(stored.config, dtype=torch.float32).eval()  # no ties by rounding
    model.load_state_dict(stored.state_dict())
    benchmarks = load_benchmarks("pocket", "search")
    mixed = [dataclasses.replace(b, questions=tuple(random.Random(0).sample(b.questions, 60))) for b in benchmarks]
    # questions whose image ids differ are not joined
    apart = [
        dataclasses.replace(b, questions=tuple(dataclasses.replace(q, image_id=q.id) for q in b.questions))
        for b in mixed
    ]
    questions = [question for benchmark in mixed for question in benchmark.questions]
    rows = [encoder.encode(question.sample) for question in questions]
    image_token = encoder.family.image_token_id(model.config)
    groups = shared_prefix.group_by_prefix(rows, [question.image_id for question in questions], image_token)
    assert max(map(len, groups)) > 4
    assert shared_prefix.honours_mask(
        partial(evaluator.answer_logits, model, encoder.family), encoder, [rows[i] for i in max(groups, key=len)]
    )
    joined = evaluate(model, encoder.family, encoder, mixed, batch_size=10)
    alone = evaluate(model, encoder.family, encoder, apart)
    for name in EMBEDDED_BENCHMARKS:
        assert joined.scores[name].tolist() == alone.scores[name].tolist()
        assert alone.scores[name].mean() > 0


def test_all_questions_are_generated_as_alone(embedded):
    stored, encoder = embedded
    model = AutoModelForImageTextToText.from_config(stored.config, dtype=torch.float32).eval()
    model.load_state_dict(stored.state_dict())
    (benchmark,) = load_benchmarks(["scenes"], "search")
    questions = benchmark.questions[:40]
    rows = [encoder.encode_prompt(question.sample) for question in questions]
    groups = evaluator._prompt_groups(model, encoder, rows, [question.image_id for question in questions], 8)
    assert max(map(len, groups)) > 2
    apart = [dataclasses.replace(question, image_id=question.id) for question in questions]
    kept = evaluator.generate_answers(model, encoder, questions, 8, batch_size=7)
    assert kept == evaluator.generate_answers(model, encoder, apart, 8)
    assert len(set(kept)) > 5


def test_a_sliding_window_that_padding_may_fill_keeps_no_prefix(embedded):
    model, encoder = embedded
    (benchmark,) = load_benchmarks(["scenes"], "search")
    rows = [encoder.encode_prompt(question.sample) for question in benchmark.questions[:40]]
    ids, longest = [question.image_id for question in benchmark.questions[:40]], max(len(r["input_ids"]) for r in rows)
    for window, keeps in ((2 * longest + 8, True), (2 * longest + 7, False)):
        family = SimpleNamespace(
            text_config=lambda config, window=window: SimpleNamespace(sliding_window=window),
            image_token_id=encoder.family.image_token_id,
        )
        own = SimpleNamespace(collate=encoder.collate, pad_id=encoder.pad_id, family=family)
        assert (evaluator._prompt_groups(model, own, rows, ids, 8) is not None) == keeps


@pytest.mark.parametrize("num_layers", [7, 3])
def test_rounding_stays_below_what_ignored_positions_and_masks_do(embedded, num_layers):
    """What `MAX_DIFFERENCE` stands between."""
    dense, encoder = embedded
    shape = dataclasses.replace(shape_of(dense.config), num_layers=num_layers)
    model = prune(dense, shape, {"depth": importance(dense, [], "deepest")})
    questions = [q for b in load_benchmarks("pocket", "search") for q in b.questions]
    rows = [encoder.encode(question.sample) for question in questions]
    ids = [question.image_id for question in questions]
    logits = partial(evaluator.answer_logits, model.eval(), encoder.family)

    def difference(changed, alone):
        return float((changed - alone).norm() / (alone - alone.mean(0)).norm())

    groups = shared_prefix.group_by_prefix(rows, ids, encoder.family.image_token_id(dense.config))
    for group in [group for group in groups if len(group) > 4][:50:10]:
        group = [rows[index] for index in group]
        alone, batch = logits(encoder.collate(group)).float(), shared_prefix.joined_batch(encoder, [group])
        assert difference(logits(batch).float(), alone) < 0.4 * shared_prefix.MAX_DIFFERENCE
        for name in ("position_ids", "attention_mask"):
            without = {key: value for key, value in batch.items() if key != name}
            assert difference(logits(without).float(), alone) > 2 * shared_prefix.MAX_DIFFERENCE
