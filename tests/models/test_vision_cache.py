import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_flatten

from raysearch import models
from raysearch.config.settings import RecoverySettings
from raysearch.models import Family, family_for
from raysearch.models.vision_cache import MAX_DIFFERENCE, VisionCache
from raysearch.recovery.trainer import RecoveryTrainer
from tests.support.recovery_setup import recipe, samples, shared_teacher, tiny_encoder, tiny_family, tiny_model
from tests.support.tiny_models import FAMILIES

ENCODER = tiny_encoder()


def counted(tower: nn.Module) -> list[int]:
    """Rows that go through a tower's first convolution, pass by pass."""
    passes: list[int] = []
    convolution = next(module for module in tower.modules() if isinstance(module, nn.Conv2d))
    convolution.register_forward_hook(lambda module, args, output: passes.append(len(args[0])))
    return passes


@torch.no_grad()
def logits(model, batch):
    return model(**{key: value for key, value in batch.items() if key != "labels"}).logits


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.num_image_tokens])
def test_a_model_that_is_served_answers_as_it_does_alone(name):
    model, batch = FAMILIES[name].model(), FAMILIES[name].batch()
    cache = VisionCache(family_for(model), 1e9)
    expected = logits(model, batch)
    for _ in range(2):
        with cache.serving(model):
            torch.testing.assert_close(logits(model, batch), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(logits(model, batch), expected)
    assert (cache.num_images > 0) == FAMILIES[name].caches_vision


def test_a_picture_goes_through_the_tower_once_and_alone():
    model, cache = tiny_model(), VisionCache(tiny_family(), 1e9)
    rows = [ENCODER.encode(sample) for sample in samples()[:6]]
    pictures = {row["pixel_values"].numpy().tobytes() for row in rows}
    with cache.serving(model):
        logits(model, ENCODER.collate(rows[:3]))
        passes = counted(model.model.vision_tower)
        logits(model, ENCODER.collate(rows))
        assert passes == [1] * (len(pictures) - len({r["pixel_values"].numpy().tobytes() for r in rows[:3]}))
        logits(model, ENCODER.collate(rows[::-1]))
    assert sum(passes) <= 3
    logits(model, ENCODER.collate(rows))
    assert passes[-1] == 6


def test_what_is_said_of_a_picture_does_not_depend_on_its_batch_or_on_what_is_known():
    tower, family = tiny_model().model.vision_tower, tiny_family()
    pixels = torch.cat([ENCODER.encode(sample)["pixel_values"] for sample in samples()[:8]])

    def said(order, max_bytes):
        model = tiny_model()
        with VisionCache(family, max_bytes).serving(model):
            found = model.model.vision_tower(pixels[order], output_hidden_states=True).last_hidden_state
        return found[torch.argsort(torch.tensor(order))]

    order = [5, 2, 7, 0, 3, 1, 6, 4]
    first = said(range(8), 1e9)
    one = first[0].nbytes
    assert torch.equal(first, said(order, 1e9))
    assert torch.equal(first, said(order, 5 * one))  # holds two pictures or so
    alone = torch.cat([tower(pixels[i : i + 1]).last_hidden_state for i in range(8)])
    assert torch.equal(first, alone)


def test_no_more_is_kept_than_allowed():
    model, family = tiny_model(), tiny_family()
    batch = ENCODER.collate([ENCODER.encode(sample) for sample in samples()[:8]])
    full, num_bytes = VisionCache(family, 1e9), []

    def note(module, args, output):
        num_bytes.append(sum(leaf.nbytes for leaf in tree_flatten(output)[0] if isinstance(leaf, torch.Tensor)))

    with full.serving(model), model.model.vision_tower.register_forward_hook(note):
        logits(model, batch)
    bounded = VisionCache(family, 2.5 * num_bytes[0] / len(batch["pixel_values"]))
    with bounded.serving(model):
        logits(model, batch)
    assert bounded.num_images == 2 < full.num_images
    with VisionCache(family, 0).serving(model):
        assert "forward" not in vars(model.model.vision_tower)


class Mixing(nn.Module):
    """A model whose tower looks at all pictures of a batch at once."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_tower = Norm()

    def forward(self, pixels):
        return self.vision_tower(pixels)


class Norm(nn.Module):
    def forward(self, pixels):
        return (pixels - pixels.mean(0)) / pixels.std()


def test_a_tower_that_mixes_its_rows_is_left_alone():
    pixels = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    model, cache = Mixing(), VisionCache(Family("mixing", vision_paths=("vision_tower",)), 1e9)
    with cache.serving(model):
        assert torch.equal(model(pixels), Norm()(pixels))
        assert torch.equal(model(pixels[:1] + 1), Norm()(pixels[:1] + 1))
    assert not cache.num_images


def test_pictures_that_come_one_at_a_time_are_known_too():
    model, cache = tiny_model(), VisionCache(tiny_family(), 1e9)
    passes = counted(model.model.vision_tower)
    with cache.serving(model):
        for _ in range(2):
            for row in map(ENCODER.encode, samples()[:2]):
                logits(model, ENCODER.collate([row]))
    assert passes == [1, 1]


def test_what_is_asked_of_a_picture_is_told_apart_and_what_is_known_stays_as_it_is():
    model, cache = tiny_model(), VisionCache(tiny_family(), 1e9)
    tower, pixels = model.model.vision_tower, ENCODER.encode(samples()[0])["pixel_values"]
    expected = tower(pixels, output_hidden_states=True)
    with cache.serving(model):
        for _ in range(2):
            assert tower(pixels, output_hidden_states=False).hidden_states is None
            found = tower(pixels, output_hidden_states=True)
            assert torch.equal(found.hidden_states[-1], expected.hidden_states[-1])
            found.hidden_states[-1].zero_()  # of the caller's own


def test_rounding_to_bf16_is_well_within_what_is_allowed():
    model, _ = models.load("pocket")
    pixels = torch.cat([ENCODER.encode(sample)["pixel_values"] for sample in samples()[:16]])
    tower = family_for(model).vision(model)[0].to(torch.bfloat16)
    with torch.no_grad():
        together = tower(pixels.bfloat16()).last_hidden_state.float()
        alone = torch.cat([tower(row[None].bfloat16()).last_hidden_state for row in pixels]).float()
    assert (alone - together).norm() <= MAX_DIFFERENCE / 3 * (together - together.mean()).norm()


def trained(vision: VisionCache | None, ends: list[int], folder=None, **settings) -> list[dict[str, float]]:
    chosen = RecoverySettings(batch_size=8, precision="fp32", **({"zero_stage": 1} | settings))
    given = (samples(), ENCODER, shared_teacher(), chosen)
    recovery = RecoveryTrainer(tiny_model(1), tiny_family(), recipe(trained="projector"), *given, vision=vision)
    if folder and folder.exists():
        recovery.restore(folder)
    losses = [recovery.train_until(end) for end in ends]
    if folder:
        recovery.save(folder)
    recovery.close()
    return losses


def test_training_is_the_same_with_what_is_known_of_pictures_from_inference():
    vision, model = VisionCache(tiny_family(), 1e9), tiny_model(1)
    with vision.serving(model), torch.inference_mode():
        logits(model, ENCODER.collate([ENCODER.encode(sample) for sample in samples()]))
    warm, cold, without = (trained(vision, [40]), trained(VisionCache(tiny_family(), 1e9), [40]), trained(None, [40]))
    assert warm == cold
    assert warm[0] == pytest.approx(without[0], rel=1e-4)  # fp32; a picture alone is rounded otherwise than in a batch


def test_a_tower_in_parts_is_run_by_all_workers():
    vision = VisionCache(tiny_family(), 1e9)
    in_parts = trained(vision, [40], zero_stage=3)
    assert not vision.num_images
    assert in_parts[0] == pytest.approx(trained(None, [40])[0], rel=1e-4)


def test_a_run_that_goes_on_with_nothing_known_is_the_unbroken_one(tmp_path):
    whole = trained(VisionCache(tiny_family(), 1e9), [16, 40])
    first = trained(VisionCache(tiny_family(), 1e9), [16], tmp_path / "state")
    second = trained(VisionCache(tiny_family(), 1e9), [40], tmp_path / "state")
    assert first + second == whole
