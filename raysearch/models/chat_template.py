"""Check that a folder's chat template ends, in little memory: it is a program that others wrote.

Transformers renders templates in Jinja's sandbox, which limits what they reach, but not their time and memory.
"""

import contextlib
import hashlib
import subprocess
import sys
from pathlib import Path

from raysearch.errors import InputError
from raysearch.files import cache_folder, write_text

MAX_SECONDS = 10
MAX_BYTES = 2**30
_RENDER = f"""
import re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({MAX_BYTES}, {MAX_BYTES}))
resource.setrlimit(resource.RLIMIT_CPU, ({MAX_SECONDS}, {MAX_SECONDS}))
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment
def refuse(message): raise TemplateError(message)
text = re.sub(r"{{%-?\\s*(end)?generation\\s*-?%}}", "", sys.stdin.read())
conversation = [("user", "a question"), ("assistant", "an answer"), ("user", "another question")]
for wrap in (str, lambda text: [dict(type="image"), dict(type="text", text=text)]):
    messages = [dict(role=role, content=wrap(text)) for role, text in conversation]
    try:
        environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
        environment.globals.update(raise_exception=refuse, strftime_now=lambda form: "")
        template = environment.from_string(text)
        length = len(template.render(messages=messages, add_generation_prompt=True, bos_token="", eos_token=""))
    except MemoryError:
        sys.exit(1)
    except Exception:
        pass  # whether it suits a conversation shows when that is rendered
"""


def check_chat_template(template: str, folder: Path) -> None:
    """Render a small conversation in a process of its own, once per template.

    Raises:
        InputError: it takes longer than `MAX_SECONDS`, or more than `MAX_BYTES`.
    """
    known = cache_folder("templates") / hashlib.sha256(template.encode("utf-8", "replace")).hexdigest()
    if known.exists():
        return
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _RENDER],
            input=template.encode("utf-8", "replace"),
            timeout=3 * MAX_SECONDS,
            capture_output=True,
        )
        ended = done.returncode == 0
    except subprocess.TimeoutExpired:
        ended = False
    if not ended:
        raise InputError(
            f"{folder}: its chat template doesn't end within {MAX_SECONDS} s and {MAX_BYTES >> 20} MiB on a short "
            "conversation; replace it"
        )
    with contextlib.suppress(OSError):  # without a cache, it is rendered again next time
        write_text(known, "")
