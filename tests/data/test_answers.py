"""Answers are found under the chat templates of many families, equal to a reference masking."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from raysearch.data.bad_rows import BadRow
from raysearch.data.encoding import Encoder
from raysearch.data.labels import IGNORED
from raysearch.data.samples import Sample, sample_from_row
from tests.support.recovery_setup import tiny_family

TEMPLATES = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        "yes <|im_end|> red <|im_end|>",
    ),
    "vicuna": (
        "{% for m in messages %}{{ m['role'].upper() }}: {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}",
        "yes red <eos>",
    ),
    "llama2": (
        "{% for m in messages %}{% if m['role'] == 'user' %}<bos>[INST] {{ m['content'] }} [/INST]"
        "{% else %} {{ m['content'] }} <eos>{% endif %}{% endfor %}",
        "yes <eos> red <eos>",
    ),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_answers_under_other_templates(name: str) -> None:
    """A turn's end belongs to the answer where the template writes one; else the last answer is given one."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    template, expected = TEMPLATES[name]
    words = "<unk> <bos> <eos> <|im_start|> <|im_end|> user assistant USER: ASSISTANT: [INST] [/INST] a b yes red"
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words.split())}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=template,
    )
    say = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}  # noqa: E731
    turns = [say("user", "a b"), say("assistant", "yes"), say("user", "b"), say("assistant", "red")]
    encoded = Encoder(fast, tiny_family(), 64).encode(Sample("x", "test", (), turns))
    labels = encoded["labels"]
    assert fast.decode(labels[labels != IGNORED]) == expected


# How families write a conversation: before it, around a question, the cue, behind an answer (with what ends the turn).
FAMILY_TEMPLATES = {
    "llava-1.5": ("", "USER: {} ", "ASSISTANT:", " {}", " ", ""),
    "vicuna, bunny": ("A chat with an assistant. ", "USER: {} ", "ASSISTANT:", " {}</s>", "", "</s>"),
    "mistral, llava-next": ("<s>", "[INST] {} [/INST]", "", " {}</s>", "", "</s>"),
    "mistral 3": ("<s>[SYSTEM_PROMPT]You help.[/SYSTEM_PROMPT]", "[INST]{}[/INST]", "", "{}</s>", "", "</s>"),
    "qwen, internvl, llava-onevision, smollm": (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n",
        "<|im_start|>user\n{}<|im_end|>\n",
        "<|im_start|>assistant\n",
        "{}<|im_end|>",
        "\n",
        "<|im_end|>",
    ),
    "phi3, mini-internvl": ("", "<|user|>\n{}<|end|>\n", "<|assistant|>\n", "{}<|end|>", "\n", "<|end|>"),
    "idefics3, smolvlm": (
        "<|im_start|>",
        "User: {}<end_of_utterance>\n",
        "Assistant:",
        " {}<end_of_utterance>",
        "\n",
        "<end_of_utterance>",
    ),
    "gemma": (
        "<bos>",
        "<start_of_turn>user\n{}<end_of_turn>\n",
        "<start_of_turn>model\n",
        "{}<end_of_turn>",
        "\n",
        "<end_of_turn>",
    ),
    "llama 3": (
        "<|begin_of_text|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
        "",
        "<|eot_id|>",
    ),
    "cohere, aya-vision": (
        "<BOS_TOKEN>",
        "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
        "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>",
        "{}<|END_OF_TURN_TOKEN|>",
        "",
        "<|END_OF_TURN_TOKEN|>",
    ),
    "granite": (
        "",
        "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n",
        "<|start_of_role|>assistant<|end_of_role|>",
        "{}<|end_of_text|>",
        "\n",
        "<|end_of_text|>",
    ),
    "olmo2": ("<s>", "<|user|>\n{}\n", "<|assistant|>\n", "{}</s>", "\n", "</s>"),
    "paligemma": ("<bos>", "{}\n", "", "{}<eos>", "", "<eos>"),
}


@pytest.mark.parametrize("name", FAMILY_TEMPLATES)
def test_answers_of_every_familys_template_are_those_that_it_marks(name: str) -> None:
    """The reference: the same template with {% generation %} around its answers, which transformers then masks."""
    start, asked, cue, answer, behind, end = FAMILY_TEMPLATES[name]
    said = "{{ m['content'] }}"
    template = (
        f"{start}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{asked.format(said)}{{% else %}}"
        f"{cue}{{% generation %}}{answer.format(said)}{{% endgeneration %}}{{{{ {behind!r} }}}}"
        "{% endif %}{% endfor %}"
        f"{{% if add_generation_prompt %}}{cue}{{% endif %}}"
    )
    fast = _byte_tokenizer(template, sorted({*re.findall(r"<[^<>]+>|\[/?[A-Z_]+\]", template), "<eos>"}))
    say = lambda role, text: {"role": role, "content": [{"type": "text", "text": text}]}  # noqa: E731
    turns = [
        say("user", "how many?"),
        say("assistant", "two, I think"),
        say("user", "and user now?"),  # words of the template inside a conversation
        say("assistant", "ASSISTANT: a\nb"),
    ]
    encoded = Encoder(fast, tiny_family(), 512).encode(Sample("x", "test", (), turns))
    plain = [{"role": turn["role"], "content": turn["content"][0]["text"]} for turn in turns]
    reference = fast.apply_chat_template(plain, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    wanted = [
        token if is_answer else IGNORED
        for token, is_answer in zip(reference["input_ids"], reference["assistant_masks"], strict=True)
    ]
    if not end:  # the template ends no turn, so the last answer is given an end
        wanted = [*wanted[: len(wanted) - len(behind)], fast.eos_token_id]
    assert encoded["labels"].tolist()[: len(wanted)] == wanted
    assert all(label == IGNORED for label in encoded["labels"].tolist()[len(wanted) :])


def _byte_tokenizer(template: str, special: list[str]) -> PreTrainedTokenizerFast:
    """One token per byte, but for `special`; offsets are then exact to the letter."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", additional_special_tokens=special, chat_template=template
    )


Turns = list[dict[str, Any]]
Segments = Iterator[tuple[str, bool]]
"""Parts of the text, and whether each belongs to an answer."""


def _thought(content: str) -> tuple[str, str]:
    before, mark, said = content.rpartition("</think>")
    return (before.split("<think>")[-1].strip("\n"), said.lstrip("\n")) if mark else ("", content)


QWEN3 = r"""
{%- set ns = namespace(last=0) %}
{%- for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
  {%- set thought = '' %}{% set said = m.content %}
  {%- if '</think>' in said %}
    {%- set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
    {%- set said = said.split('</think>')[-1].lstrip('\n') %}
  {%- endif %}
  {{- '<|im_start|>assistant\n' }}
  {%- if loop.index0 > ns.last and (loop.last or thought) %}
    {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' + said.lstrip('\n') }}
  {%- else %}{{- said }}{% endif %}
  {%- for call in m.tool_calls or [] %}
    {{- ('\n' if said or not loop.first else '') + '<tool_call>\n{"name": "' + call.function.name }}
    {{- '", "arguments": ' }}{{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}
  {%- endfor %}
  {{- '<|im_end|>\n' }}
{%- elif m.role == 'tool' %}
  {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{- '<|im_start|>user' }}{% endif %}
  {{- '\n<tool_response>\n' + m.content + '\n</tool_response>' }}
  {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\n' }}{% endif %}
{%- else %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{% endif %}"""


def _qwen3(turns: Turns) -> Segments:
    last = max(i for i, turn in enumerate(turns) if turn["role"] == "user")
    for i, turn in enumerate(turns):
        role, content = turn["role"], turn["content"]
        if role == "assistant":
            thought, said = _thought(content)
            yield "<|im_start|>assistant\n", False
            if i > last and (i + 1 == len(turns) or thought):
                yield f"<think>\n{thought}\n</think>\n\n", True
            yield said, True
            for call in turn.get("tool_calls", ()):
                given = '{"name": "look", "arguments": {"at": "left"}}'
                assert call["function"] == {"name": "look", "arguments": {"at": "left"}}
                yield ("\n" if said else "") + f"<tool_call>\n{given}\n</tool_call>", True
            yield "<|im_end|>", True
            yield "\n", False
        elif role == "tool":
            is_first, is_last = turns[i - 1]["role"] != "tool", turns[i + 1]["role"] != "tool"
            yield ("<|im_start|>user" if is_first else "") + f"\n<tool_response>\n{content}\n</tool_response>", False
            yield "<|im_end|>\n" if is_last else "", False
        else:
            yield f"<|im_start|>{role}\n{content}<|im_end|>\n", False


DEEPSEEK_R1 = r"""
{%- set ns = namespace(system='') %}
{%- for m in messages %}{% if m.role == 'system' %}{% set ns.system = m.content %}{% endif %}{% endfor %}
{{- '<bos>' + ns.system }}
{%- for m in messages %}
{%- if m.role == 'user' %}{{- '<|User|>' + m.content }}
{%- elif m.role == 'assistant' %}{{- '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|Assistant|><think>\n' }}{% endif %}"""


def _deepseek_r1(turns: Turns) -> Segments:
    yield "<bos>" + "".join(turn["content"] for turn in turns if turn["role"] == "system"), False
    for turn in turns:
        if turn["role"] == "user":
            yield f"<|User|>{turn['content']}", False
        elif turn["role"] == "assistant":
            yield "<|Assistant|>", False
            yield turn["content"].rpartition("</think>")[2] + "<|end|>", True


MISTRAL = r"""
{%- if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{- '<bos>' }}
{%- for m in rest %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{%- if m.role == 'user' %}
{{- '[INST] ' + (system if loop.index0 >= (rest | length) - 2 else '') + m.content + ' [/INST]' }}
{%- else %}{{- ' ' + m.content | trim + '</s>' }}{% endif %}
{%- endfor %}"""


def _mistral(turns: Turns) -> Segments:
    """The system turn stands in the last question."""
    system = "".join(f"{turn['content']}\n\n" for turn in turns if turn["role"] == "system")
    rest = [turn for turn in turns if turn["role"] != "system"]
    yield "<bos>", False
    for i, turn in enumerate(rest):
        if turn["role"] == "user":
            yield f"[INST] {system if i >= len(rest) - 2 else ''}{turn['content']} [/INST]", False
        else:
            yield f" {turn['content'].strip()}</s>", True


GEMMA3 = r"""
{{- '<bos>' }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{%- for m in rest %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (system if loop.first else '') }}
{{- m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<start_of_turn>model\n' }}{% endif %}"""


def _gemma3(turns: Turns) -> Segments:
    system = "".join(f"{turn['content']}\n\n" for turn in turns if turn["role"] == "system")
    yield "<bos>", False
    for i, turn in enumerate(turn for turn in turns if turn["role"] != "system"):
        is_answer = turn["role"] == "assistant"
        yield f"<start_of_turn>{'model' if is_answer else turn['role']}\n" + ("" if i else system), False
        yield turn["content"].strip() + ("<end_of_turn>" if is_answer else ""), is_answer
        yield "\n" if is_answer else "<end_of_turn>\n", False


GLM4 = r"""
{{- '[gMASK]<sop>' }}
{%- for m in messages %}
{%- if m.role == 'assistant' and '</think>' in m.content %}
{{- '<|assistant|>\n' + (m.content if loop.last else m.content.split('</think>')[-1].strip()) }}
{%- else %}{{- '<|' + ('observation' if m.role == 'tool' else m.role) + '|>\n' + m.content }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|assistant|>\n<think>' }}{% endif %}"""


def _glm4(turns: Turns) -> Segments:
    """No turn has an end; the cue begins a thought, which belongs to the answer where the template writes it."""
    yield "[gMASK]<sop>", False
    for i, turn in enumerate(turns):
        role, content = turn["role"], turn["content"]
        yield f"<|{'observation' if role == 'tool' else role}|>\n", False
        is_last = i + 1 == len(turns)
        if role == "assistant" and "</think>" in content:
            content = content if is_last else content.rpartition("</think>")[2].strip()
            if is_last:
                yield "<think>", False
                content = content.removeprefix("<think>")
        yield content, role == "assistant"


LLAMA3 = r"""
{{- '<|begin_of_text|>' }}
{%- if messages[0].role == 'system' %}{% set system = messages[0].content | trim %}{% set rest = messages[1:] %}
{%- else %}{% set system = '' %}{% set rest = messages %}{% endif %}
{{- '<|start_header_id|>system<|end_header_id|>\n\nCutting Knowledge Date: December 2023\n\n' + system + '<|eot_id|>' }}
{%- for m in rest %}
{{- '<|start_header_id|>' + ('ipython' if m.role == 'tool' else m.role) + '<|end_header_id|>\n\n' }}
{{- (m.content | tojson if m.role == 'tool' else m.content | trim) + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"""


def _llama3(turns: Turns) -> Segments:
    system = "".join(turn["content"].strip() for turn in turns if turn["role"] == "system")
    yield "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n", False
    yield f"Cutting Knowledge Date: December 2023\n\n{system}<|eot_id|>", False
    for turn in turns:
        role, content = turn["role"], turn["content"]
        if role != "system":
            yield f"<|start_header_id|>{'ipython' if role == 'tool' else role}<|end_header_id|>\n\n", False
            yield (f'"{content}"' if role == "tool" else content.strip()) + "<|eot_id|>", role == "assistant"


SHAPES: dict[str, tuple[str, Callable[[Turns], Segments]]] = {
    "qwen3, qwen3-vl": (QWEN3, _qwen3),
    "deepseek r1": (DEEPSEEK_R1, _deepseek_r1),
    "mistral with a system turn": (MISTRAL, _mistral),
    "gemma3": (GEMMA3, _gemma3),
    "glm4, glm4v": (GLM4, _glm4),
    "llama 3.1 with tools": (LLAMA3, _llama3),
}


def _say(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM = [_say("system", "be brief")]
PLAIN = [_say("user", "how many?"), _say("assistant", "two"), _say("user", "sure?"), _say("assistant", "two, yes")]
THINKING = [
    _say("user", "how many?"),
    _say("assistant", "<think>\none and one\n</think>\n\ntwo"),
    _say("user", "sure?"),
    _say("assistant", "<think>\nI counted\n</think>\n\nyes"),
]
CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at": "left"}'}}
TOOLS = [
    _say("user", "what is there?"),
    _say("assistant", "I look", tool_calls=[CALL]),
    _say("tool", "a dog"),
    _say("tool", "a cat"),
    _say("assistant", "two animals"),
    _say("user", "which?"),
    _say("assistant", "a dog and a cat"),
]
SAME = [_say("user", "a"), _say("assistant", "a"), _say("user", "a"), _say("assistant", "a")]
CONVERSATIONS = {
    "plain": PLAIN,
    "one turn": PLAIN[:2],
    "system": SYSTEM + PLAIN,
    "thinking": THINKING,
    "only the first thinks": [*THINKING[:2], *PLAIN[2:]],
    "only the last thinks": [*PLAIN[:2], *THINKING[2:]],
    "system and thinking": SYSTEM + THINKING,
    "tools": TOOLS,
    "thinking between tools": [
        TOOLS[0],
        _say("assistant", "<think>\nI should look\n</think>\n\nI look", tool_calls=[CALL]),
        *TOOLS[2:4],
        _say("assistant", "<think>\ntwo\n</think>\n\ntwo animals"),
    ],
    "the same words": SAME,
    "words of the template": [
        _say("user", "<|im_start|>assistant\n"),
        _say("assistant", "assistant\nuser"),
        _say("user", "<think>"),
        _say("assistant", "<thing> [/INST] model"),
    ],
}


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_answers_of_thinking_system_and_tool_turns(shape: str, conversation: str) -> None:
    template, reference = SHAPES[shape]
    row = {"messages": CONVERSATIONS[conversation]}
    roles = {turn["role"] for turn in row["messages"]}
    if "tool" in roles and shape in ("deepseek r1", "mistral with a system turn", "gemma3"):
        pytest.skip("has no tools")
    special = sorted({*re.findall(r"<\|?[a-z_]+\|?>|\[/?[A-Z]+\]|</s>", template), "<eos>"} - {"<think>"})
    fast = _byte_tokenizer(template, [mark for mark in special if "think" not in mark and "tool" not in mark])
    sample = sample_from_row(row, "0")
    turns = [{**turn, "content": sample.text_of(i)} for i, turn in enumerate(sample.messages)]
    segments = list(reference(turns))
    text = fast.apply_chat_template(turns, tokenize=False)
    assert "".join(part for part, _ in segments) == text
    encoded = Encoder(fast, tiny_family(), 4096).encode(sample)
    made = fast(text, add_special_tokens=False, return_offsets_mapping=True)
    flags = [is_answer for part, is_answer in segments for _ in part]
    wanted = [
        token if flags[start] else IGNORED
        for token, (start, _) in zip(made["input_ids"], made["offset_mapping"], strict=True)
    ]
    got = encoded["labels"].tolist()
    if len(got) > len(wanted):  # the template ends no turn
        wanted.append(fast.eos_token_id)
    assert got == wanted


TEMPLATES_THAT_LOSE = {
    "leaves out an answer": "{% for m in messages[-2:] %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
    "refuses": "{{ raise_exception('no such role') }}",
    "cuts answers": "{% for m in messages %}{{ m.role }}: {{ m.content[:3] }}\n{% endfor %}",
    "damaged": "{% for m in messages %}{{ m.x.y }}{% endfor %}",
    "no template": "{% for %}",
}


@pytest.mark.parametrize("name", TEMPLATES_THAT_LOSE)
def test_a_row_whose_answers_are_not_all_found_is_bad(name: str) -> None:
    encoder = Encoder(_byte_tokenizer(TEMPLATES_THAT_LOSE[name], ["<eos>"]), tiny_family(), 512)
    with pytest.raises(BadRow) as error:
        encoder.encode(sample_from_row({"messages": PLAIN}, "0"))
    assert "\n" not in str(error.value)


def test_marks_of_a_template_are_taken_and_the_end_of_the_last_answer_too() -> None:
    marked = (
        "{% for m in messages %}<|{{ m.role }}|>{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ m.content }}{% endif %}<|end|>{% endfor %}"
    )
    fast = _byte_tokenizer(marked, ["<|user|>", "<|assistant|>", "<|end|>", "<eos>"])
    encoded = Encoder(fast, tiny_family(), 512).encode(sample_from_row({"messages": PLAIN}, "0"))
    labels = encoded["labels"]
    assert fast.decode(labels[labels != IGNORED]) == "twotwo, yes<|end|>"
