"""Banks as models of simonw's command `llm`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megart.errors import InputError
from megart.runtime.answer import Answer, Source

llm = pytest.importorskip("llm")

from megart.serve import llm_plugin  # noqa: E402
from megart.serve.llm_plugin import BankModel, register_models  # noqa: E402

SOURCE = Source("key", "Boathouse", "It hangs behind the oar.", (9, 23))


class Asked:
    """An assistant that remembers what it was asked, and answers in two pieces."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], dict]] = []

    def stream(self, messages: list[dict[str, str]], **options: object) -> object:
        self.asked.append(([f"{m['role']}: {m['content']}" for m in messages], options))
        if messages[-1]["content"] == "fail":
            raise InputError("no such thing")

        class Stream:
            answer = Answer("behind the oar", "ask", tokens=[1, 2, 3], known=True, sources=[SOURCE])

            def __iter__(self) -> object:
                return iter(["behind ", "the oar"])

        return Stream()


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    assistant = Asked()
    monkeypatch.setattr(BankModel, "_loaded", lambda self: assistant)
    return assistant


def test_a_talk_with_a_system_prompt_and_options_reaches_the_bank(asked: Asked) -> None:
    talk = BankModel("megart", Path("notes")).conversation()
    first = talk.prompt("Where is the key?", system="Be brief.", style="short")
    assert first.text() == "behind the oar" and [*first] == ["behind ", "the oar"]
    assert first.response_json["sources"][0]["id"] == "key" and first.output_tokens == 3
    talk.prompt("And the oar?").text()
    assert asked.asked == [
        (["system: Be brief.", "user: Where is the key?"], {"style": "short"}),
        (["user: Where is the key?", "assistant: behind the oar", "user: And the oar?"], {}),
    ]


def test_what_goes_wrong_is_one_line_of_llms(asked: Asked) -> None:
    with pytest.raises(llm.ModelError, match="^no such thing$"):
        BankModel("megart", Path("notes")).prompt("fail").text()


def test_a_bank_that_is_not_there_is_told_when_it_is_asked(tmp_path: Path) -> None:
    with pytest.raises(llm.ModelError, match="megart init"):
        BankModel("megart", tmp_path / "none").prompt("hello").text()


def test_the_users_bank_and_those_named_are_models(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEGART_BANK", "/banks/own")
    monkeypatch.setenv("MEGART_LLM_BANKS", "/banks/work:/banks/old.megapack")
    found: list[BankModel] = []
    register_models(found.append)
    assert [model.model_id for model in found] == ["megart", "megart:work", "megart:old"]
    assert str(found[0]._path) == "/banks/own"


def test_the_entry_point_names_the_plugin() -> None:
    text = (Path(__file__).parent.parent / "pyproject.toml").read_text("utf-8")
    assert re.search(r'\[project\.entry-points\.llm\]\nmegart = "megart\.serve\.llm_plugin"', text)
    assert llm_plugin.register_models is register_models
