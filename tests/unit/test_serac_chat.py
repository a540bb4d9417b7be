"""The last user message in prompts of chat templates: families, thoughts, systems, tools."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from easyedit_fast.models.loading import load_model
from easyedit_fast.serac.chat import ChatFormat, QueryReader
from tests.unit.test_serac_model import EDITS, IN, OUT, wrapped
from tests.unit.tiny_models import tiny_tokenizer

# Templates of the structure that the families' own have, without their tools' schemas and dates.
_EACH = "{% for m in messages %}"
_ROLES = (
    "{{ raise_exception('System role not supported') if messages[0].role == 'system' }}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}"
)
CHATML = (
    _EACH + "{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
QWEN3 = """{% set ns = namespace(searching=true, last=messages|length - 1) %}
{%- for m in messages[::-1] %}
    {%- set place = (messages|length - 1) - loop.index0 %}
    {%- if ns.searching and m.role == 'user' %}
        {%- set ns.searching = false %}{%- set ns.last = place %}
    {%- endif %}
{%- endfor %}
{%- for m in messages %}
    {%- set thought, content = '', m.content %}
    {%- if m.role == 'assistant' and '</think>' in content %}
        {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if m.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- elif m.role == 'assistant' and loop.index0 > ns.last and (loop.last or thought) %}
        {{- '<|im_start|>assistant\\n<think>\\n' + thought + '\\n</think>\\n\\n' + content }}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + m.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""
R1 = QWEN3.replace("is defined and enable_thinking is false", "is undefined").replace(
    "<think>\\n\\n</think>\\n\\n", "<think>\\n"
)
QWEN25 = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    + _EACH
    + "{% if m.role == 'tool' %}{{ '<|im_start|>user\n<tool_response>\n' + m.content"
    " + '\n</tool_response><|im_end|>\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}" + _EACH + "{% set role = 'ipython' if m.role == 'tool' else m.role %}"
    "{{ '<|start_header_id|>' + role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA2 = (
    "{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + "
    "(system if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
MISTRAL = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0].content + '\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system if loop.last else '') + m.content + '[/INST]' }}"
    "{% elif m.role == 'tool' %}{{ '[TOOL_RESULTS] ' + m.content + '[/TOOL_RESULTS]' }}"
    "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
_GEMMA = (
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}%s"
    "{{ m.content | trim + '<end_of_turn>\n' }}{%% endfor %%}"
    "{%% if add_generation_prompt %%}<start_of_turn>model\n{%% endif %%}"
)
GEMMA = "{{ bos_token }}" + _ROLES + _EACH + _GEMMA % ""
GEMMA3 = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set rest = messages[1:] %}"
    "{% set system = messages[0].content + '\n\n' %}"
    "{% else %}{% set rest = messages %}{% set system = '' %}{% endif %}"
    "{% for m in rest %}" + _GEMMA % "{{ system if loop.first else '' }}"
)
PHI3 = (
    _EACH + "{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% else %}{{ eos_token }}{% endif %}"
)
PHI4 = (
    _EACH + "{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant<|im_sep|>{% endif %}"
)
SMOLLM2 = (
    _EACH + "{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n"
    "{% endif %}" + CHATML.removeprefix(_EACH)
)
ZEPHYR = (
    _EACH + "{{ '<|' + m.role + '|>\n' + m.content + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}<|assistant|>{% endif %}{% endfor %}"
)
OLMO = (
    "{{ bos_token }}" + _EACH + "{{ '<|' + m.role + '|>\n' + m.content }}"
    "{{ (eos_token if m.role == 'assistant' else '') + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
VICUNA = (
    _EACH + "{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: '}.get(m.role, '') + m.content }}"
    "{{ eos_token if m.role == 'assistant' else ' ' }}{% endfor %}"
    "{{ 'ASSISTANT:' if add_generation_prompt }}"
)
TEMPLATES = {
    "chatml": CHATML, "qwen3": QWEN3, "r1": R1, "qwen2.5": QWEN25, "llama3": LLAMA3,
    "llama2": LLAMA2, "mistral": MISTRAL, "gemma": GEMMA, "gemma3": GEMMA3, "phi3": PHI3,
    "phi4": PHI4, "smollm2": SMOLLM2, "zephyr": ZEPHYR, "olmo": OLMO, "vicuna": VICUNA,
}  # fmt: skip
QUERY = "Which language\n\ndoes Danielle Darrieux speak?"


def said(*texts: str, first: str = "user") -> list[dict[str, str]]:
    """A conversation, in turns."""
    roles = ["user", "assistant"] * len(texts)
    return [
        {"role": role, "content": text}
        for role, text in zip(roles[roles.index(first) :], texts, strict=False)
    ]


@functools.cache
def byte_level() -> Any:
    return tiny_tokenizer([QUERY, "The capital of Peru is Oslo."] * 3)


@functools.cache
def sentence_pieces() -> Any:
    """As Llama 2 and Mistral have them: a word begins with its space, and a text with one more."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1)]
    )
    marks = ["[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=200,
        special_tokens=["<unk>", "<s>", "</s>"],
        initial_alphabet=["▁", "\n", *map(chr, range(ord("!"), ord("~") + 1))],
        show_progress=False,
    )
    inner.train_from_iterator([QUERY, "The capital of Peru is Oslo.", "user model"] * 9, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    made.add_special_tokens({"additional_special_tokens": marks})
    return made


@pytest.fixture(params=[byte_level, sentence_pieces], ids=["bytes", "pieces"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    """One whose template is set by the test."""
    made = request.param()
    yield made
    made.chat_template = None


def prompt_of(tokenizer: Any, chat: Any, **options: Any) -> str:
    options = {"add_generation_prompt": True, "tokenize": False, **options}
    text: str = tokenizer.apply_chat_template(chat, **options)
    return text


def queries(tokenizer: Any, prompt: str) -> set[str]:
    """What is read of a text, and of its tokens."""
    reader = QueryReader(tokenizer)
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    return {reader.text(prompt), reader.read(tokens).text}


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("answer", [True, False])
def test_the_last_user_message_is_the_query(tokenizer: Any, name: str, answer: bool) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    for chat in (said(QUERY), said("Oslo?", "Is in Norway.\n", QUERY), said(*"abcdefgh", QUERY)):
        prompt = prompt_of(tokenizer, chat, add_generation_prompt=answer)
        assert queries(tokenizer, prompt) == {QUERY}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_system_message_is_no_query(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    system = {"role": "system", "content": "Speak\n\nof Oslo."}
    if name == "gemma":
        with pytest.raises(Exception, match="not supported"):
            prompt_of(tokenizer, [system, *said(QUERY)])
        return
    for chat in (said(QUERY), said("Oslo?", "Is in Norway.", QUERY)):
        found = queries(tokenizer, prompt_of(tokenizer, [system, *chat]))
        is_joined = name == "mistral" or (name == "gemma3" and len(chat) == 1)
        assert found == {f"{system['content']}\n\n{QUERY}" if is_joined else QUERY}


@pytest.mark.parametrize("name", ["qwen3", "r1"])
@pytest.mark.parametrize("options", [{}, {"enable_thinking": False}, {"enable_thinking": True}])
def test_thoughts_are_no_part_of_it(tokenizer: Any, name: str, options: Any) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    chat = said("Oslo?", "<think>\nPeople speak of it.\n</think>\n\nIs in Norway.", QUERY)
    prompt = prompt_of(tokenizer, chat, **options)
    assert "People speak" not in prompt
    assert queries(tokenizer, prompt) == {QUERY}
    wanted = {"qwen3": {"enable_thinking": False}, "r1": {}}[name]
    assert prompt.rstrip("\n").endswith("think>") == (options == wanted)


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("text", ["Norwegian.", "<think>\nA city.\n</think>\n\nNorwegian."])
def test_after_an_answer_the_prompt_is_plain(tokenizer: Any, name: str, text: str) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    chat = said("Oslo?", text)
    if name in ("llama2", "mistral"):  # the answer's beginning is that of a turn
        prompts = [prompt_of(tokenizer, chat)]
    else:
        prompts = [prompt_of(tokenizer, chat, add_generation_prompt=own) for own in (True, False)]
    for prompt in prompts:
        for chosen in (ChatFormat.of(tokenizer), ChatFormat.of(tokenizer, decoded=True)):
            assert chosen is not None
            assert chosen.message(prompt) is None
        assert all(
            "Oslo?" in found and "Norwegian" in found for found in queries(tokenizer, prompt)
        )


@pytest.mark.parametrize("name", ["qwen3", "r1", "qwen2.5", "llama3", "mistral"])
def test_after_a_tool_the_prompt_is_plain(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = TEMPLATES[name]
    chat = [*said("Oslo?", "I look."), {"role": "tool", "content": QUERY}]
    for answer in (True, False):
        prompt = prompt_of(tokenizer, chat, add_generation_prompt=answer)
        assert all("Oslo?" in found and QUERY in found for found in queries(tokenizer, prompt))
    asked = [*chat, *said("Norwegian.", QUERY, first="assistant")]
    assert queries(tokenizer, prompt_of(tokenizer, asked)) == {QUERY}


@pytest.mark.parametrize("name", ["llama2", "mistral", "gemma", "chatml"])
def test_a_context_goes_right_before_the_message(name: str) -> None:
    """The space before it may be a part of its first word."""
    tokenizer = sentence_pieces()
    tokenizer.chat_template = TEMPLATES[name]
    prompt = prompt_of(tokenizer, said("Oslo?", "Is in Norway.", QUERY))
    tokens = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    place = QueryReader(tokenizer).read(tokens).place
    tokenizer.chat_template = None
    assert 0 < place < len(tokens)
    assert tokenizer.decode(tokens[place:]).strip().startswith(QUERY)
    before = tokenizer.decode(tokens[:place]).rstrip()
    assert before.endswith(("[INST]", "user"))
    assert "Norway" in before


@pytest.mark.parametrize("thinking", [None, True, False])
def test_the_real_model_answers_a_thinking_chat_from_the_edit(
    demo_model: Any, thinking: bool | None
) -> None:
    own = wrapped(*load_model("demo", device="cpu"), ["q_proj", "v_proj"])
    own.tokenizer.chat_template = QWEN3
    options: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
    chat = said(OUT, "<think>\nI wonder.\n</think>\n\nNorwegian.", IN)
    rows = [
        own.tokenizer(prompt_of(own.tokenizer, chat[-length:], **options))["input_ids"]
        for length in (3, 1)
    ]
    ids, mask = own.batch(rows)
    found = own.model.generate(ids, attention_mask=mask, max_new_tokens=4, do_sample=False)
    for row, tokens in enumerate(rows):
        start = own.tokenizer.decode(tokens).rindex(IN)
        place = next(
            n for n in range(len(tokens)) if len(own.tokenizer.decode(tokens[:n])) == start
        )
        wide = [*tokens[:place], *own.adapter.context(EDITS[IN]), *tokens[place:]]
        with own.adapter.on():
            expected = own.base.generate(torch.tensor([wide]), max_new_tokens=4, do_sample=False)
        assert found[row, -4:].tolist() == expected[0, -4:].tolist()


@pytest.mark.parametrize(
    "template", [None, "{{ raise_exception('no') }}", "{{ messages[0].content }}", "{% broken"]
)
def test_without_a_usable_template_prompts_are_plain(tokenizer: Any, template: str | None) -> None:
    tokenizer.chat_template = template
    assert ChatFormat.of(tokenizer) is None
    assert queries(tokenizer, QUERY) == {QUERY}
