"""The teacher's states on disk: the same as online, shared, and made again where they are not right."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raysearch.config.settings import RecoverySettings
from raysearch.data.labels import num_answer_labels
from raysearch.errors import InputError
from raysearch.recovery import teacher_cache
from raysearch.recovery.teacher import Teacher
from raysearch.recovery.trainer import RecoveryTrainer
from tests.support.recovery_setup import (
    cached_teacher,
    processor,
    recipe,
    samples,
    tiny_encoder,
    tiny_family,
    tiny_model,
)

CPU = torch.device("cpu")
ENCODER = tiny_encoder()


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teacher_cache, "SHARD_SAMPLES", 16)


def _targets(teacher: Teacher, places: list[int]) -> torch.Tensor:
    return teacher.targets(ENCODER.collate([ENCODER.encode(samples()[place]) for place in places]), places)


def _files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_states_are_those_of_the_model_in_any_order(tmp_path: Path) -> None:
    """Equal but for bf16 rounding (half of 2^-8 of a value), and for sums over rows that are padded otherwise."""
    teacher, online = cached_teacher(tmp_path), Teacher(tiny_model(), tiny_family())
    teacher.prepare(40, CPU)
    for places in ([0, 1, 2], [39, 3, 17, 0], [16]):
        found, wanted = _targets(teacher, places), _targets(online, places)
        assert found.dtype == wanted.dtype
        torch.testing.assert_close(found, wanted, rtol=2**-8, atol=1e-6)
    assert teacher.targets(
        ENCODER.collate([ENCODER.encode(samples()[0])]) | {"labels": torch.full((1, 9), -100)}, [-1]
    ).shape == (0, 1, 32)


def test_a_smaller_fraction_takes_fewer_shards_and_a_larger_one_adds_to_them(tmp_path: Path) -> None:
    cached_teacher(tmp_path).prepare(12, CPU)
    assert _files(tmp_path) == ["states-00000.safetensors"]
    first = (tmp_path / "states-00000.safetensors").stat().st_mtime_ns
    cached_teacher(tmp_path).prepare(40, CPU)
    assert _files(tmp_path) == [f"states-{i:05}.safetensors" for i in range(3)]
    assert (tmp_path / "states-00000.safetensors").stat().st_mtime_ns == first
    states = load_file(tmp_path / "states-00002.safetensors")["states"]
    assert states.dtype == torch.bfloat16
    assert len(states) == sum(num_answer_labels(ENCODER.encode(sample)) for sample in samples()[32:])


def _series(teacher: Teacher, **values: Any) -> list[dict[str, float]]:
    chosen = RecoverySettings(batch_size=8, precision="fp32", zero_stage=1)
    recovery = RecoveryTrainer(tiny_model(1), tiny_family(), recipe(**values), samples(), ENCODER, teacher, chosen)
    found = [recovery.train_until(end) for end in (8, 24, 40)]
    recovery.close()
    return found


@pytest.mark.parametrize("kl", ["forward", "reverse"])
def test_distillation_from_the_cache_is_distillation_online(tmp_path: Path, kl: str) -> None:
    """Within the rounding of bf16: 2^-9 of a state at most, and losses are smooth in them."""
    online = _series(Teacher(tiny_model(), tiny_family()), kl=kl)
    for mine, theirs in zip(_series(cached_teacher(tmp_path), kl=kl), online, strict=True):
        assert mine == pytest.approx(theirs, rel=2**-9)


def test_once_filled_the_dense_model_is_left_alone(tmp_path: Path) -> None:
    wanted = _series(cached_teacher(tmp_path))
    teacher = cached_teacher(tmp_path)
    teacher.model.base_model.forward = None
    assert _series(teacher) == wanted
    head = teacher.head_on(CPU)
    last = _targets(teacher, [5])[:, -1]
    torch.testing.assert_close(head(last), teacher.model.lm_head(last))


def _other_model(path: Path) -> bytes:
    cached_teacher(path.parent / "other", model=tiny_model(seed=2)).prepare(40, CPU)
    return (path.parent / "other" / path.name).read_bytes()


HARM: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda path: b"",
    "cut": lambda path: path.read_bytes()[:-5],
    "one bit": lambda path: path.read_bytes()[:-5] + bytes([path.read_bytes()[-5] ^ 1]) + path.read_bytes()[-4:],
    "another model": _other_model,
    "another place": lambda path: path.with_name("states-00000.safetensors").read_bytes(),
}


@pytest.mark.parametrize("harm", HARM)
def test_wrong_shards_are_made_again(tmp_path: Path, harm: str, caplog: pytest.LogCaptureFixture) -> None:
    cached_teacher(tmp_path).prepare(40, CPU)
    path = tmp_path / "states-00001.safetensors"
    right, wrong = path.read_bytes(), HARM[harm](path)
    assert wrong != right
    path.unlink()
    path.write_bytes(wrong)
    again = cached_teacher(tmp_path)
    again.prepare(40, CPU)
    assert len(caplog.records) == 1
    assert "states-00001.safetensors" in caplog.text
    online = Teacher(tiny_model(), tiny_family())
    torch.testing.assert_close(_targets(again, [20]), _targets(online, [20]), rtol=2**-8, atol=1e-6)


def test_states_of_a_bf16_model_are_right_for_the_next_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They may be computed in fp32, and belong to the model as it is stored."""
    for _ in range(2):
        teacher = cached_teacher(tmp_path)
        teacher.model.to(torch.bfloat16)
        teacher.prepare(20, CPU)
    assert caplog.messages == []
    assert {parameter.dtype for parameter in teacher.model.parameters()} == {torch.bfloat16}


def test_the_key_follows_model_data_and_template(tmp_path: Path) -> None:
    def key(**more: Any) -> str:
        return cached_teacher(tmp_path, **more).shard_key(0)

    other = processor().__class__.from_pretrained(_saved(tmp_path))
    assert key(encoder=teacher_cache.Encoder(other, tiny_family(), 512)) == key(), "a copy is the same"
    other.chat_template = "{{ messages }}"
    keys = [
        key(),
        key(model=tiny_model(seed=2)),
        key(rows=samples()[1:]),
        key(encoder=tiny_encoder(max_length=300)),
        key(encoder=teacher_cache.Encoder(other, tiny_family(), 512)),
    ]
    assert len(set(keys)) == len(keys)


def _saved(folder: Path) -> Path:
    processor().save_pretrained(folder / "processor")
    return folder / "processor"


def test_many_fill_one_folder_at_once(tmp_path: Path) -> None:
    for sample in samples():
        ENCODER.encode(sample)  # tokenizers serve one thread at a time
    teachers = [cached_teacher(tmp_path, encoder=ENCODER) for _ in range(4)]
    threads = [threading.Thread(target=teacher.prepare, args=(40, CPU)) for teacher in teachers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert _files(tmp_path) == [f"states-{i:05}.safetensors" for i in range(3)]
    for teacher in teachers:
        assert torch.equal(_targets(teacher, [1, 30, 39]), _targets(teachers[0], [1, 30, 39]))


def test_the_quota_is_judged_before_anything_is_written(tmp_path: Path) -> None:
    teacher = cached_teacher(tmp_path / "teacher", quota_gb=1e-6)
    with pytest.raises(InputError, match=r"take about .* GB; recovery.teacher_quota_gb allows 1e-06") as error:
        teacher.prepare(1, CPU)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "teacher").exists()
    cached_teacher(tmp_path / "teacher", quota_gb=1e-4).prepare(40, CPU)


def test_the_quota_is_for_the_largest_fraction(tmp_path: Path) -> None:
    cached_teacher(tmp_path).prepare(40, CPU)
    quota = 1.6 * sum(path.stat().st_size for path in tmp_path.iterdir()) / teacher_cache.GB
    cached_teacher(tmp_path / "whole", quota_gb=quota).prepare(1, CPU)
    with pytest.raises(InputError, match=r"lower recipe\.data_fraction"):
        cached_teacher(tmp_path / "half", quota_gb=quota / 2).prepare(1, CPU)
    cached_teacher(tmp_path / "half", quota_gb=quota / 2, largest_fraction=0.4).prepare(16, CPU)


def test_rows_that_cannot_be_used_have_no_states(tmp_path: Path) -> None:
    lengths = [len(ENCODER.encode(sample)["input_ids"]) for sample in samples()[:16]]
    short = tiny_encoder(max_length=sorted(lengths)[8])
    teacher = cached_teacher(tmp_path, encoder=short)
    teacher.prepare(16, CPU)
    usable = [place for place, length in enumerate(lengths) if length <= short.max_length]
    assert 0 < len(usable) < 16
    assert len(_targets(teacher, usable)) == len(load_file(tmp_path / "states-00000.safetensors")["states"])


def test_a_teacher_of_other_tokens_is_refused(tmp_path: Path) -> None:
    config = tiny_model().config
    config.text_config.vocab_size += 1
    stranger = Teacher(type(tiny_model())(config), tiny_family())
    with pytest.raises(InputError, match="their tokenizers differ"):
        _series(stranger)
