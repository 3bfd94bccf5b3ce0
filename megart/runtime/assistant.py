"""Asking a bank from any thread: the thin face over a runtime, an open bank and what its clients say."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import gate
from ..bank import Bank, Record
from ..errors import InputError, MegartError
from ..models import Model, resolve_model
from .acceptance import Acceptance
from .answer import Answer
from .ask import STRICT_STATE
from .bank_index import IndexEntry
from .complete import Completion, complete, tokens_of
from .conversation import Conversation
from .draft import LONGEST, MOST_GUESSES
from .found import Judged
from .job import Job
from .open_bank import History, OpenBank
from .request import ANSWER_TOKENS, COMBINE, MODES, RECALL_TOKENS, STYLE, STYLES, Message, Request
from .respond import respond
from .runtime import Runtime
from .sampling import SamplingOptions
from .scope import EVERYTHING, Scope
from .worker import CancelledError, Stream

T = TypeVar("T")
OnText = Callable[[str], None]


class Assistant:
    """Answers from a bank's memories, or as the bare base when none of them applies.

    ``model`` defaults to the bank's own base; a model with another hash is refused (BaseMismatchError). ``runtime``:
    one that is running already, for banks that share a base; it stays open when the assistant is closed. Without it,
    ``options`` are those of :class:`~megart.runtime.runtime.Runtime`.
    ``draft_max``: how many tokens the text of the memory that answers may guess at a time (see
    :mod:`~megart.runtime.draft`), 0 for none; the bare model is never guessed for.

    Any thread may ask; the questions are answered one after the other. Each verb takes the options
    of :class:`~megart.runtime.sampling.SamplingOptions` by name (``temperature``, ``stop``, ``grammar``...)
    and ``history``, the conversation so far: [{"role": "user", "content": "..."}, ...]; ``scope`` (see
    :class:`~megart.runtime.scope.Scope`) limits which memories may open. ``on_text``
    receives the answer as it is decoded, in the caller's thread.

    Where several memories open, each answers in its turn, the likeliest first, at full strength;
    ``max_tokens`` is of all turns together, its default of each. ``combine="mix"`` lets them answer
    at once under the gated sum of their adapters (the paper's way); gates that a scope gives, and a
    grammar, always do.
    """

    def __init__(
        self,
        bank: Bank,
        *,
        model: str | Path | Model | None = None,
        runtime: Runtime | None = None,
        policy: gate.GatePolicy | None = None,
        combine: str = "turns",
        draft_max: int = LONGEST,
        **options: Any,
    ):
        if combine not in COMBINE:
            raise InputError(f"got combine {combine!r}; expected one of {', '.join(COMBINE)}")
        if not 0 <= draft_max <= MOST_GUESSES:
            raise InputError(f"got draft_max {draft_max}; expected 0 (no guessing) to {MOST_GUESSES}")
        self.bank, self.combine, self.draft_max = bank, combine, draft_max
        self._owns_runtime = runtime is None
        if runtime is None:
            base = resolve_model(model) if model is not None else bank.model
            bank.check_base(base)
            runtime = Runtime(base, **options)
        elif options or model is not None:
            raise InputError("got a runtime and options of one; give these to the runtime")
        self.runtime = runtime
        try:
            self.open_bank = OpenBank(bank, runtime, policy=policy)
        except BaseException:
            if self._owns_runtime:
                runtime.close()
            raise
        self.engine, self.base, self.mix, self.slot = runtime.engine, runtime.base, runtime.mix, runtime.slot
        self.acceptance = Acceptance(runtime, self.open_bank)
        self._closed = False

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free what it holds, once the questions that wait are answered; the bank stays open. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._owns_runtime:
            self.runtime.close()
        elif self.open_bank in self.runtime.guests:  # else the runtime was closed before
            self.runtime.call(self.open_bank.close)

    def prepare(self) -> None:
        """Measure the gate's whitening now, unless the bank has it: the first question need not wait."""

        def prepare() -> None:
            self.open_bank.memories.prepare()
            _ = self.open_bank.memories.text_embedder

        self.on_model(prepare)

    def conversation(self, history: Sequence[Message] = ()) -> Conversation:
        """A talk with one client, which remembers what was said; *history*: what was said before."""
        return Conversation(self, history)

    # -- the user's verbs -------------------------------------------------------------------

    def ask(
        self, question: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """Answer *question* from what the memories that it is about recite.

        ``style``: "sentence" (the default), "short" or "passage"; ``strict``: where nothing is known, say only
        that (default: as the bank was made).
        """
        return self._submit("ask", question, history, options).wait(on_text)

    def direct(
        self, question: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """Answer *question* by the memories' own adapters, without reading (the paper's way; recipes direct, paper)."""
        return self._submit("direct", question, history, options).wait(on_text)

    def recall(
        self, cue: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """Reconstruct the whole memory that *cue* (a question, a title, a few words) is about.

        The cue opens the memory; the request that the memory was taught with calls up its text.
        """
        return self._submit("recall", cue, history, options).wait(on_text)

    def irag(
        self, question: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """Recall first, then answer from what was recalled (the paper's iRAG)."""
        return self._submit("irag", question, history, options).wait(on_text)

    def bare(
        self, question: str, *, history: Sequence[Message] = (), on_text: OnText | None = None, **options: Any
    ) -> Answer:
        """What the base answers without any memory, to the same prompt as :meth:`ask`."""
        return self._submit("bare", question, history, options).wait(on_text)

    def chat(self, messages: Sequence[Message], *, on_text: OnText | None = None, **options: Any) -> Answer:
        """:meth:`ask` the last message, a user's, after the others (a system prompt may come first)."""
        return self.stream(messages, **options).wait(on_text)

    def stream(
        self, question: str | Sequence[Message], *, mode: str = "ask", history: Sequence[Message] = (), **options: Any
    ) -> Stream[Answer]:
        """Queue *question* (or messages, the last one a user's) and return at once.

        Iterate over what comes back for the text as it is decoded; its ``answer`` is the whole one. Where the last
        message is an assistant's, the bare model goes on with it, and the answer is what it adds.
        ``mode``: "ask", "direct", "recall", "irag" or "bare".
        """
        if mode not in (*MODES,):
            raise InputError(f"got the mode {mode!r}; expected one of {', '.join(MODES)}")
        if not isinstance(question, str):
            messages = [*question]
            if len(messages) > 1 and messages[-1].get("role") == "assistant":
                mode, options["begun"] = "bare", messages.pop().get("content", "")
            if not messages or messages[-1].get("role") != "user":
                raise InputError('the last message must be the user\'s: {"role": "user", "content": ...}')
            history, question = [*history, *messages[:-1]], messages[-1].get("content", "")
            return self._submit(mode, question, history, options, in_talk=True)
        return self._submit(mode, question, history, options)

    def _submit(
        self, mode: str, question: str, history: Sequence[Message], given: dict[str, Any], *, in_talk: bool = False
    ) -> Stream[Answer]:
        _check_messages([*history, {"role": "user", "content": question}])
        if not question.strip():
            raise InputError("got an empty question; expected some words")
        if self._closed:
            raise MegartError("the assistant is closed; make a new one")
        scope, limited = given.pop("scope", EVERYTHING), given.get("max_tokens") is not None
        strict, style = given.pop("strict", None), given.pop("style", STYLE)
        if style not in STYLES:
            raise InputError(f"got the style {style!r}; expected one of {', '.join(STYLES)}")
        how = {
            "style": style,
            "strict": self.bank.get_state(STRICT_STATE) == b"1" if strict is None else bool(strict),
            "combine": self.combine,
            "draft_max": self.draft_max,
            "on_known": given.pop("on_known", None),
            "subject": given.pop("subject", None),
            "tools": tuple(given.pop("tools", ())),
            "begun": given.pop("begun", ""),
        }
        options = SamplingOptions.of(RECALL_TOKENS if mode == "recall" else ANSWER_TOKENS, given)
        request = Request(mode, question, [*history], options, scope, limited, in_talk or bool(history), **how)
        return self.runtime.submit(lambda stream: respond(Job(self.runtime, self.open_bank, request, stream)))

    def complete(
        self, prompt: str | Sequence[int], *, max_tokens: int = 16, logprobs: int | None = None, echo: bool = False,
        **options: Any,
    ) -> Stream[Completion]:  # fmt: skip
        """Queue *prompt*, a text or token ids, for the bare base to continue as it is, without a chat template.

        ``max_tokens`` may be 0. ``logprobs``: score each new token, with ``echo`` those of the prompt too, beside so
        many likeliest ones. Raises InputError.
        """
        how = SamplingOptions.of(max(1, max_tokens), options)
        tokens = tokens_of(self.engine, prompt)

        def run(stream: Stream[Completion]) -> Completion:
            self.runtime.idle_prefill.expect(None)
            return complete(self.base, self.runtime.prefixes, tokens, max_tokens, how, stream, logprobs, echo)

        return self.runtime.submit(run)

    def key(self, text: str, title: str | None = None) -> np.ndarray:
        """The context key of a memory: float32 [D], as stored in the bank."""
        return self.on_model(lambda: self.open_bank.memories.keys.memory(text, title))

    def index_entry(self, text: str, title: str | None = None) -> IndexEntry:
        """What the gate finds a memory by: ``bank.add(memory, **assistant.index_entry(text, title))``."""
        return self.acceptance.index_entry(text, title)

    def embed(self, text: str) -> np.ndarray:
        """The vector of *text* by the text embedder, by the base's shallow states without one: float32 [D], unit length."""
        if not text.strip():
            raise InputError("got an empty text; expected some words")

        def run() -> np.ndarray:
            memories = self.open_bank.memories
            if memories.text_embedder is not None:
                return gate.unit(memories.text_embedder.memory(text, None))  # several embedders' are longer
            return memories.prepare().keys(memories.keys.memory(text, None)[None])[0]

        return self.on_model(run)

    def updated_by(self, text: str, title: str | None = None) -> tuple[Record, float] | None:
        """The memory that *text* may update, and how probable that is; None where none is."""
        return self.on_model(lambda: self.open_bank.memories.updated_by(text, title))

    def rekey(self, embedder: str | None = None, *, on_progress: Callable[[int, int], None] | None = None) -> str:
        """Make the keys and evidence of all memories anew, by *embedder* or the bank's own; returns its name.

        ``on_progress`` (done, of) is called from the model's thread.
        """

        def run(stream: Stream[str]) -> str:
            def progress(done: int, of: int) -> None:
                if stream.is_cancelled:  # Ctrl-C, in the caller's thread
                    raise CancelledError("stopped; the bank keeps the keys it had")
                if on_progress:
                    on_progress(done, of)

            return self.open_bank.memories.rekey(embedder, progress)

        return self.runtime.submit(run).wait()

    def gate(self, question: str, *, scope: Scope = EVERYTHING, history: History = ()) -> Judged:
        """What the gate makes of *question*: the shallow layers are run, nothing is answered."""
        if not question.strip():
            raise InputError("got an empty question; expected some words")

        return self.on_model(lambda: self.open_bank.judge(question.strip(), scope, history))

    def on_model(self, work: Callable[[], T]) -> T:
        """Run *work* on the model's thread, in its turn; returns its result. See :meth:`Runtime.call`."""
        return self.runtime.call(work)


def _check_messages(messages: Sequence[Message]) -> None:
    for message in messages:
        if not (
            isinstance(message, dict)
            and message.get("role") in ("system", "user", "assistant")
            and isinstance(message.get("content"), str)
        ):
            raise InputError(
                f'got the message {message!r}; expected {{"role": "system", "user" or "assistant", "content": text}}'
            )
