"""Banks as models of simonw's command `llm`: ``llm -m megart "Where is the key?"``. Found by its entry point.

``megart`` is the bank that `megart ask` would ask ($MEGART_BANK, else the user's own), ``megart:DIR`` that of a folder
or pack named in $MEGART_LLM_BANKS (paths with the system's path separator between them).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, cast

import llm

from ..bank.pack import open_path
from ..errors import MegartError
from ..models import user_data_dir


class Options(llm.Options):
    """``-o style short``, ``-o strict 1``, ``-o max_tokens 40``."""

    style: Literal["short", "sentence", "passage"] | None = None
    strict: bool | None = None
    max_tokens: int | None = None
    temperature: float | None = None


class BankModel(llm.Model):
    """One bank; its base is loaded at the first prompt, and stays for the process."""

    can_stream = True
    Options: Any = Options

    def __init__(self, model_id: str, path: Path):
        self.model_id, self._path = model_id, path
        self._opened = ExitStack()
        self._assistant: Any = None

    def __str__(self) -> str:
        return f"megart: {self.model_id} ({self._path})"

    def _loaded(self) -> Any:
        if self._assistant is None:
            from ..runtime.assistant import Assistant

            bank: Any = self._opened.enter_context(open_path(self._path))
            self._assistant = self._opened.enter_context(Assistant(bank))
        return self._assistant

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None = None
    ) -> Iterator[str]:
        given = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        try:
            answer = self._loaded().stream(_messages(prompt, conversation), **given)
            yield from answer
        except MegartError as error:
            raise llm.ModelError(str(error)) from error
        whole_answer = answer.answer
        response.response_json = {name: value for name, value in whole_answer.to_dict().items() if name != "answer"}
        response.set_usage(input=whole_answer.timings.prompt_tokens, output=len(whole_answer.tokens))


def _messages(prompt: llm.Prompt, conversation: llm.Conversation | None) -> list[dict[str, str]]:
    """The talk so far and the new question."""
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    for before in conversation.responses if conversation else ():
        messages += [
            {"role": "user", "content": before.prompt.prompt or ""},
            {"role": "assistant", "content": cast(Any, before).text_or_raise()},
        ]
    return [*messages, {"role": "user", "content": prompt.prompt or ""}]


@llm.hookimpl
def register_models(register: Any) -> None:
    own = os.environ.get("MEGART_BANK") or str(user_data_dir() / "bank")
    register(BankModel("megart", Path(own).expanduser()))
    for path in filter(None, os.environ.get("MEGART_LLM_BANKS", "").split(os.pathsep)):
        register(BankModel(f"megart:{Path(path).name.removesuffix('.megapack')}", Path(path).expanduser()))
