"""A client's tools: shown to the model alone where its template has a place for them, and its calls handed back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from megart import Bank, Memory, memorize
from megart.models import Model
from megart.runtime.engine import CHATML, Engine

pytest.importorskip("fastapi")
openai = pytest.importorskip("openai")

from serving import listening  # noqa: E402

from megart.serve import calls, wire  # noqa: E402
from megart.serve.desk import Desk  # noqa: E402

LOOK: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = '{"name": "look", "arguments": {"at": "oar"}}'
SHOWING = "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}" + CHATML
ASK = {"model": "smollm2", "messages": [{"role": "user", "content": "Look at the oar."}], "max_tokens": 60}


@pytest.mark.parametrize(
    "said, rest, count",
    [
        (f"<tool_call>\n{CALL}\n</tool_call>", "", 1),
        (f"Let me see. <tool_call>{CALL}</tool_call><tool_call>{CALL}", "Let me see.", 2),
        (CALL, "", 1),
        ('[{"name": "look", "parameters": {"at": "oar"}}]', "", 1),
        (CALL.replace("look", "delete"), CALL.replace("look", "delete"), 0),
        ("It is blue: {", "It is blue: {", 0),
        ("[" * 100_000, "[" * 100_000, 0),
    ],
    ids=range(7),
)
def test_calls_are_told_from_text(said: str, rest: str, count: int) -> None:
    text, found = calls.parted(said, [LOOK])
    assert text == rest and len(found) == count and len({call["id"] for call in found}) == count
    for call in found:
        assert call["function"]["name"] == "look" and json.loads(call["function"]["arguments"]) == {"at": "oar"}


def test_what_offers_no_function_is_passed_over() -> None:
    given = [LOOK, {"type": "web_search"}, 5]
    assert wire.chat({**ASK, "tools": given}).tools == (LOOK,)
    assert wire.chat({**ASK, "tools": given, "tool_choice": "none"}).tools == ()
    assert wire.chat({**ASK, "tools": given}, "title_generation").tools == ()


@pytest.fixture
def client(
    smollm2: Model, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, request: Any
) -> Iterator[SimpleNamespace]:
    """Of a server whose model has the template *param*; None: its own, which has no place for tools."""
    own = Engine.metadata
    if request.param:
        monkeypatch.setattr(
            Engine, "metadata", lambda self, key: request.param if key == "tokenizer.chat_template" else own(self, key)
        )
    with Bank.create(tmp_path_factory.mktemp("calls") / "notes", smollm2) as bank:
        memorize(bank, [Memory("The oar of the boathouse is blue.", id="oar", title="Oar")], later=True)
        with listening(Desk([bank], threads=1)) as url:
            yield openai.OpenAI(base_url=f"{url}/v1", api_key="none").chat.completions


@pytest.mark.parametrize("client", [SHOWING], indirect=True, ids=["shown"])
def test_the_model_alone_is_shown_tools_and_its_calls_come_back(client: Any) -> None:
    spoken = {"grammar": "root ::= " + json.dumps(f"<tool_call>{CALL}</tool_call>")}  # what a better model would say
    plain = client.create(**ASK).usage.prompt_tokens
    whole = client.create(**ASK, tools=[LOOK], extra_body=spoken)
    assert whole.usage.prompt_tokens > plain + 10
    choice = whole.choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    assert json.loads(choice.message.tool_calls[0].function.arguments) == {"at": "oar"}
    parts = [part.choices[0] for part in client.create(**ASK, tools=[LOOK], extra_body=spoken, stream=True)]
    (called,) = [call for part in parts for call in part.delta.tool_calls or ()]
    assert called.index == 0 and called.function.name == "look" and parts[-1].finish_reason == "tool_calls"
    assert "".join(part.delta.content or "" for part in parts) == ""
    asked = {**ASK, "model": "smollm2:notes", "messages": [{"role": "user", "content": "What colour is the oar?"}]}
    answer = client.create(**asked, tools=[LOOK]).choices[0]
    assert "blue" in answer.message.content and answer.finish_reason == "stop"


@pytest.mark.parametrize("client", [None], indirect=True, ids=["not shown"])
def test_a_template_without_a_place_for_tools_passes_them_over(client: Any) -> None:
    assert client.create(**ASK, tools=[LOOK]).usage.prompt_tokens == client.create(**ASK).usage.prompt_tokens
