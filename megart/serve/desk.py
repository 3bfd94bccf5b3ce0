"""The banks of a server, each with its Assistant: what a model id means, and what waits. Knows nothing of HTTP."""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..bank import Bank, Memory, Record
from ..bank.pack import PackedBank
from ..errors import BankError, InputError, MemoryNotFoundError
from ..later import save_one
from ..runtime.answer import Answer
from ..runtime.assistant import Assistant
from ..runtime.complete import MOST_ALTERNATIVES, Completion
from ..runtime.found import Judged
from ..runtime.runtime import Runtime
from ..runtime.scope import Scope
from ..runtime.worker import Stream
from . import wire
from .lessons import Lessons
from .texts import CompletionRequest

MOST_WAITING = 32
# What a message must say to become a memory: the rule that the README explains.
_REMEMBER = re.compile(
    r"\s*(?:please[, ]+)?remember(?:\s+that\s|\s*:\s|\s+(?=(?:my|our|i|we|\w+['’]s)\s))\s*(?P<text>\S.*)",
    re.IGNORECASE | re.DOTALL,
)


def to_remember(message: str) -> str | None:
    """The memory that *message* asks to keep ("Remember that ..."), as a sentence; None where it asks for none.

    What ends as a question is one ("Remember that day in Skerrow?").
    """
    match = None if message.rstrip().endswith("?") else _REMEMBER.fullmatch(message)
    text = match["text"].strip() if match else ""
    return text[0].upper() + text[1:] if text else None


def _is_weight(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= 1


class ReadOnlyError(BankError):
    """A pack is asked in place and cannot be changed."""


class Desk:
    """Several banks; those of one base share a runtime. Safe from several threads.

    ``remember``: messages may save memories; ``teach``: what is saved is taught when nobody asks; ``later``:
    :meth:`load` is called by somebody else, until then nothing can be asked; ``how``: options of a :class:`Runtime`.
    """

    def __init__(
        self,
        banks: Sequence[Bank],
        *,
        remember: bool = True,
        teach: bool = False,
        later: bool = False,
        **how: Any,
    ):
        self._banks: dict[str, Bank] = {}
        self._assistants: dict[str, Assistant] = {}
        self._runtimes: dict[str, Runtime] = {}  # by the hash of their base
        self._how = {**how, "most_waiting": MOST_WAITING}
        self.remembers, self._teaches = remember, teach
        #: Whether the models are there.
        self.is_loaded = False
        self._loading = threading.RLock()  # closing waits for it
        for bank in banks:
            self._banks[self._name(bank)] = bank
        self._lessons = {str(bank.path): Lessons(bank) for bank in banks}
        if not later:
            self.load()

    def load(self) -> None:
        """Load the banks' models. Raises ModelError."""
        with self._loading:
            try:
                for name, bank in self._banks.items():
                    if bank.base.sha256 not in self._runtimes:
                        self._runtimes[bank.base.sha256] = Runtime(bank.model, **self._how)
                    self._assistants[name] = Assistant(bank, runtime=self._runtimes[bank.base.sha256])
                    self._assistants[name].prepare()
            except BaseException:
                self.close()
                raise
            self.is_loaded = True

    def _name(self, bank: Bank) -> str:
        plain = re.sub(r"[^\w.-]+", "-", bank.path.name.removesuffix(".megapack")).strip("-") or "bank"
        name, number = plain, 2
        while name in self._banks:
            name, number = f"{plain}-{number}", number + 1
        return name

    def close(self) -> None:
        for lessons in self._lessons.values():
            lessons.stop()
        with self._loading:
            for assistant in self._assistants.values():
                assistant.close()
            for runtime in self._runtimes.values():
                runtime.close()

    # -- which bank ----------------------------------------------------------------------------

    @property
    def models(self) -> list[str]:
        """``base:bank`` for each bank, the first one the default, and each ``base`` alone, which opens no memory."""
        with_bank = [f"{bank.base.name}:{name}" for name, bank in self._banks.items()]
        return [*with_bank, *dict.fromkeys(bank.base.name for bank in self._banks.values())]

    def find(self, model: str) -> tuple[Bank, Assistant, bool]:
        """The bank that *model* names, its assistant, and whether memories may open. Raises MemoryNotFoundError."""
        name, opens = self._named(model)
        return self._banks[name], self._assistants[name], opens

    def _named(self, model: str) -> tuple[str, bool]:
        """The name of *model*'s bank, and whether memories may open."""
        model = model.removesuffix(":latest")
        base, _, name = model.partition(":")
        for number, (own, bank) in enumerate(self._banks.items()):
            if (not model and number == 0) or (name == own and base == bank.base.name) or (not name and base == own):
                return own, True
        for own, bank in self._banks.items():
            if model == bank.base.name:
                return own, False
        raise MemoryNotFoundError(f"no model {model!r}; there are: {', '.join(self.models)}")

    # -- questions -----------------------------------------------------------------------------

    def start(self, ask: wire.Ask) -> Stream[Answer]:
        """Queue *ask*. Raises BusyError when too many wait for its base, InputError."""
        _, assistant, _ = self.find(ask.model)
        given, mode = ask.megart, self._mode(ask)
        how = {name: given[name] for name in ("style", "strict") if given.get(name) is not None}
        if mode == "bare":
            how = {"tools": self.tools(ask)}
        lists = {name: given.get(name) or () for name in ("only", "without", "tags")}
        if any(not isinstance(v, (list, tuple)) or not all(isinstance(i, str) for i in v) for v in lists.values()):
            raise InputError("got megart.only, without or tags that are no lists of texts")
        gates = given.get("gates") or {}
        if not isinstance(gates, dict) or not all(_is_weight(weight) for weight in gates.values()):
            raise InputError("got megart.gates that are no weights by id; expected {id: above 0, at most 1}")
        only, without, tags = (tuple(lists[name]) for name in ("only", "without", "tags"))
        scope = Scope(only, without, tags, gates)
        return assistant.stream(ask.messages, mode=mode, scope=scope, **how, **ask.options)

    def _mode(self, ask: wire.Ask) -> Any:
        return "bare" if ask.side or ask.goes_on or not self.find(ask.model)[2] else ask.megart.get("mode") or "ask"

    def tools(self, ask: wire.Ask) -> tuple[wire.Tool, ...]:
        """Those that the model alone may call: what it is asked from memories calls none."""
        shows = self._mode(ask) == "bare" and self.find(ask.model)[1].engine.takes_tools
        return ask.tools if shows else ()

    def complete(self, text: CompletionRequest, prompt: str | list[int]) -> Stream[Completion]:
        """Queue *prompt* for the bare model to continue. Raises BusyError, InputError."""
        _, assistant, _ = self.find(text.model)
        if text.logprobs is not None and text.logprobs > MOST_ALTERNATIVES:
            raise InputError(f"got logprobs {text.logprobs}; expected at most {MOST_ALTERNATIVES}")
        return assistant.complete(prompt, logprobs=text.logprobs, echo=text.echo, **text.options)

    def embed(self, model: str, texts: Sequence[str]) -> Stream[list[np.ndarray]]:
        """Queue *texts* to be made into vectors. Raises BusyError."""
        assistant = self.find(model)[1]

        def run(stream: Stream[list[np.ndarray]]) -> list[np.ndarray]:
            return [assistant.embed(text) for text in texts if not stream.is_cancelled]

        return assistant.runtime.submit(run)

    def gate(self, model: str, question: str) -> Stream[Judged]:
        """Queue what the gate makes of *question*. Raises BusyError."""
        assistant = self.find(model)[1]
        return assistant.runtime.submit(lambda _: assistant.gate(question))

    @property
    def waiting(self) -> int:
        """Questions whose answers are not whole, and are still wanted."""
        return sum(runtime.waiting for runtime in self._runtimes.values())

    def to_remember(self, ask: wire.Ask) -> str | None:
        """What the last message asks to remember; None where it does not, or the server does not."""
        _, _, opens = self.find(ask.model)
        asks = opens and self.remembers and not ask.side and not ask.goes_on
        return to_remember(ask.messages[-1]["content"]) if asks else None

    # -- memories ------------------------------------------------------------------------------

    def save(self, model: str, memory: Memory) -> Record:
        """Save *memory* as pending: it answers from its text at once. Raises InputError."""
        record = save_one(self.writable(model), memory, self.find(model)[1])
        if self._teaches:
            self.lessons(model).start_when(lambda: self.waiting == 0)
        return record

    def lessons(self, model: str) -> Lessons:
        """The teaching of the bank of *model*."""
        return self._lessons[str(self.find(model)[0].path)]

    def forget(self, model: str, id: str) -> Record:
        """Remove a memory for good. Raises MemoryNotFoundError, ReadOnlyError."""
        return self.writable(model).remove(id)

    def writable(self, model: str) -> Bank:
        """The bank of *model*. Raises ReadOnlyError for a pack."""
        bank = self.find(model)[0]
        if isinstance(bank, PackedBank):
            raise ReadOnlyError(
                f"{bank.path.name} is a pack and cannot be changed; run: megart unpack {bank.path.name} FOLDER"
            )
        return bank

    def about(self, model: str) -> dict[str, Any]:
        """What a page has to know of a model's bank: how many memories it has (None: it opens none), and if it is a pack."""
        name, opens = self._named(model)
        bank = self._banks[name]
        return {"memories": len(bank) if opens else None, "read_only": isinstance(bank, PackedBank)}
