"""One request at work: what every stage of an answer is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import prompts
from .ahead import ParallelPrefill
from .answer import Answer
from .context import Context
from .draft import Draft
from .engine import Prompt
from .generate import Generation, generate
from .open_bank import OpenBank
from .request import Request
from .runtime import Runtime
from .sampling import SamplingOptions
from .worker import Stream


@dataclass(frozen=True)
class Job:
    """*request*, to be answered by *runtime* from *bank*; the answer's text goes to *stream* as it is known."""

    runtime: Runtime
    bank: OpenBank
    request: Request
    stream: Stream[Answer]

    def asking(self, **changed: Any) -> Job:
        """The same with another request: some fields *changed*."""
        return replace(self, request=replace(self.request, **changed))

    @property
    def is_cancelled(self) -> bool:
        return self.stream.is_cancelled

    def prompt(self) -> Prompt:
        """The request as the base is given it."""
        prompt = self.runtime.prompt(*self.request.worded(), self.request.history, self.request.tools)
        begun = self.runtime.engine.tokenize(self.request.begun, special=False) if self.request.begun else []
        return replace(prompt, opening=(*prompt.opening, *begun))

    def generate(
        self, context: Context, draft: Draft | None = None, along: ParallelPrefill | None = None
    ) -> Generation:
        """What *context* says after the prompt that it holds."""
        return generate(
            context, self.request.options, self.stream.put, lambda: self.stream.is_cancelled, draft, along
        )

    def put(self, text: str, options: SamplingOptions | None = None) -> Generation:
        """*text* as the answer; nothing is decoded."""
        return self.runtime.put(text, options or self.request.options, self.stream.put)

    def plain(self, prompt: Prompt) -> Generation:
        """The bare base's answer to *prompt*."""
        self.runtime.prefixes.advance(prompt.body)
        self.runtime.base.decode(prompt.opening)
        return replace(self.generate(self.runtime.base), prompt_tokens=len(prompt.tokens))

    def from_texts(self, texts: Sequence[str]) -> Generation:
        """The bare base's answer with *texts* in the prompt."""
        asked = prompts.with_text(self.request.question, list(texts))
        return self.plain(self.runtime.prompt(asked, None, self.request.history))
