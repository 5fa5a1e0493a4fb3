"""A template that doesn't end, or fills the memory, is one line within seconds; any other is let through."""

from pathlib import Path

import pytest

from raysearch.errors import InputError
from raysearch.models import chat_template
from raysearch.models.chat_template import check_chat_template


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "raysearch" / "templates"


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 11 }}",
        "{% set found = namespace(text='aaaaaaaa') %}{% for i in range(60) %}{% set found.text = found.text * 2 %}"
        "{% endfor %}",
    ],
)
def test_a_template_without_an_end_is_refused(
    template: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat_template, "_RENDER", chat_template._RENDER.replace("(10, 10)", "(1, 1)"))
    with pytest.raises(InputError, match="its chat template doesn't end within") as caught:
        check_chat_template(template, tmp_path)
    assert "\n" not in str(caught.value)
    assert not cache.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{% for message in messages %}{{ message.content }}{% endfor %}",
        "{% for message in messages %}{% generation %}{{ message.content }}{% endgeneration %}{% endfor %}",
        "{{ raise_exception('only one turn') }}",
        "{{ ''.__class__.__mro__ }}",
        "{% broken",
        "\ud800",
    ],
)
def test_other_templates_are_rendered_once(
    template: str, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_chat_template(template, tmp_path)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(chat_template.subprocess, "run", lambda *args, **kwargs: pytest.fail("rendered again"))
    check_chat_template(template, tmp_path)
