"""The banks of a server, each with its Assistant: what a model id means, and what waits. Knows nothing of HTTP."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..bank import Bank, Memory, Record
from ..errors import InputError, MemoryNotFoundError
from ..later import save_pending
from ..plan import plan
from ..runtime.answer import Answer
from ..runtime.assistant import Assistant
from ..runtime.runtime import Runtime
from ..runtime.scope import Scope
from ..runtime.worker import Stream
from . import wire

MOST_WAITING = 32
# What a message must say to become a memory: the rule that the README explains.
_REMEMBER = re.compile(r"\s*(?:please[, ]+)?remember(?:\s+that|\s*:)\s+(?P<text>\S.*)", re.IGNORECASE | re.DOTALL)
MODES = ("ask", "direct", "recall", "irag", "bare")


class Desk:
    """Several banks; those of one base share a runtime. Safe from several threads. ``how``: options of a Runtime."""

    def __init__(self, banks: Sequence[Bank], *, remember: bool = True, waiting: int = MOST_WAITING, **how: Any):
        self._banks: dict[str, tuple[Bank, Assistant]] = {}
        self._runtimes: dict[str, Runtime] = {}  # by the hash of their base
        self.remembers = remember
        try:
            for bank in banks:
                base = bank.model
                if base.sha256 not in self._runtimes:
                    self._runtimes[base.sha256] = Runtime(base, most_waiting=waiting, **how)
                self._banks[self._name(bank)] = bank, Assistant(bank, runtime=self._runtimes[base.sha256])
        except BaseException:
            self.close()
            raise

    def _name(self, bank: Bank) -> str:
        plain = re.sub(r"[^\w.-]+", "-", bank.path.name).strip("-") or "bank"
        name, number = plain, 2
        while name in self._banks:
            name, number = f"{plain}-{number}", number + 1
        return name

    def close(self) -> None:
        for _, assistant in self._banks.values():
            assistant.close()
        for runtime in self._runtimes.values():
            runtime.close()

    # -- which bank ----------------------------------------------------------------------------

    @property
    def models(self) -> list[str]:
        """``base:bank`` for each bank, the first one the default, and each ``base`` alone, which opens no memory."""
        with_bank = [f"{bank.base.name}:{name}" for name, (bank, _) in self._banks.items()]
        return [*with_bank, *dict.fromkeys(bank.base.name for bank, _ in self._banks.values())]

    def find(self, model: str) -> tuple[Bank, Assistant, bool]:
        """The bank that *model* names, its assistant, and whether memories may open. Raises MemoryNotFoundError."""
        model = model.removesuffix(":latest")
        base, _, name = model.partition(":")
        for number, (own, (bank, assistant)) in enumerate(self._banks.items()):
            if (not model and number == 0) or (name == own and base == bank.base.name) or (not name and base == own):
                return bank, assistant, True
        for bank, assistant in self._banks.values():
            if model == bank.base.name:
                return bank, assistant, False
        raise MemoryNotFoundError(f"no model {model!r}; there are: {', '.join(self.models)}")

    # -- questions -----------------------------------------------------------------------------

    def start(self, ask: wire.Ask) -> Stream[Answer]:
        """Queue *ask*. Raises BusyError when too many wait for its base, InputError."""
        bank, assistant, opens = self.find(ask.model)
        given = ask.megart
        mode = given.get("mode") or "ask"
        if mode not in MODES:
            raise InputError(f"got the mode {mode!r}; expected one of {', '.join(MODES)}")
        if ask.side or not opens:
            mode = "bare"
        how = {name: given[name] for name in ("style", "strict") if given.get(name) is not None}
        if mode == "bare":
            how = {}
        lists = {name: given.get(name) or () for name in ("only", "without", "tags")}
        if any(not isinstance(v, (list, tuple)) or not all(isinstance(i, str) for i in v) for v in lists.values()):
            raise InputError("got megart.only, without or tags that are no lists of texts")
        only, without, tags = (tuple(lists[name]) for name in ("only", "without", "tags"))
        scope = Scope(only, without, tags)
        return assistant.stream(ask.messages, mode=mode, scope=scope, **how, **ask.options)

    @property
    def waiting(self) -> int:
        """Questions whose answers are not whole."""
        return sum(runtime.waiting for runtime in self._runtimes.values())

    def to_remember(self, ask: wire.Ask) -> str | None:
        """What the last message asks to remember; None where it does not, or the server does not."""
        _, _, opens = self.find(ask.model)
        found = _REMEMBER.fullmatch(ask.messages[-1]["content"])
        return found["text"].strip() if found and opens and self.remembers and not ask.side else None

    # -- memories ------------------------------------------------------------------------------

    def save(self, model: str, memory: Memory) -> Record:
        """Save *memory* as pending: it answers from its text at once. Raises InputError."""
        bank, assistant, _ = self.find(model)
        bank.remove_expired()
        todo = plan(bank, [memory], False)
        save_pending(bank, todo.memories, over=todo.over, assistant=assistant)
        return bank.get(todo.order[0])

    def path(self, model: str) -> Path:
        return self.find(model)[0].path
