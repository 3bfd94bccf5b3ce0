"""Asking a bank from any thread: questions queue for one worker, which owns the model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .. import gate
from ..adapter import Adapter
from ..bank import Bank, Record
from ..errors import InputError
from ..models import Model, resolve_model
from . import hot
from .answer import Answer
from .ask import STRICT_STATE, STYLE, check_style
from .bank_index import FoundBy
from .complete import Completion, complete, tokens_of
from .context import Context
from .draft import LONGEST, MOST_GUESSES
from .engine import Engine
from .generate import greedy
from .opening import EVERYTHING, History, Judged, Scope
from .respond import ANSWER_TOKENS, MODES, RECALL_TOKENS, Message, Question, Responder
from .sampling import Options
from .slot import MAX_RANK, TYPE
from .worker import CancelledError, Stream, Worker

T = TypeVar("T")
OnText = Callable[[str], None]
CONTEXT_TOKENS = 2048


class Assistant:
    """Answers from a bank's memories, or as the bare base when none of them applies.

    ``model`` defaults to the bank's own base; a model with another hash is refused
    (BaseMismatchError). ``context_size`` is in tokens, at most what the model was trained for (InputError);
    ``threads`` defaults to the cores that other programs leave free,
    ``gpu_layers`` is llama.cpp's n_gpu_layers. ``hot_bytes`` bounds the adapters kept mapped;
    memories that need more rank together than ``max_rank`` are recompressed to it. ``slot`` is the type that
    factors have while they answer: "q8_0", "f16" or "f32". ``draft_max``: how many tokens the text of the memory
    that answers may guess at a time (see :mod:`~megart.runtime.draft`), 0 for none; the bare model is never guessed for.

    Any thread may ask; the questions are answered one after the other. Each verb takes the options
    of :class:`~megart.runtime.sampling.Options` by name (``temperature``, ``stop``, ``grammar``...)
    and ``history``, the conversation so far: [{"role": "user", "content": "..."}, ...]; ``scope`` (see
    :class:`~megart.runtime.opening.Scope`) limits which memories may open. ``on_text``
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
        context_size: int = CONTEXT_TOKENS,
        threads: int | None = None,
        gpu_layers: int = 0,
        policy: gate.GatePolicy | None = None,
        combine: str = "turns",
        in_place: bool = True,
        max_rank: int = MAX_RANK,
        slot: str = TYPE,
        hot_bytes: int = hot.BUDGET,
        draft_max: int = LONGEST,
    ):
        base = resolve_model(model) if model is not None else bank.model
        bank.check_base(base)
        self.bank = bank
        self.engine = Engine(base, threads=threads, gpu_layers=gpu_layers)
        longest = max(self.engine.context_length, CONTEXT_TOKENS)
        if not 1 <= context_size <= longest:
            self.engine.close()
            raise InputError(
                f"got a context of {context_size} tokens; expected 1 to {longest}, which {base.name} can read"
            )
        try:
            if not 0 <= draft_max <= MOST_GUESSES:
                raise InputError(f"got draft_max {draft_max}; expected 0 (no guessing) to {MOST_GUESSES}")
            self.responder = Responder(
                bank,
                self.engine,
                context_size=context_size,
                policy=policy or gate.GatePolicy(),
                combine=combine,
                in_place=in_place,
                max_rank=max_rank,
                slot=slot,
                hot_bytes=hot_bytes,
                draft_max=draft_max,
            )
        except BaseException:
            self.engine.close()
            raise
        self.base, self.mix, self.slot = self.responder.base, self.responder.mix, self.responder.slot
        self.opening = self.responder.opening
        self._worker = Worker(self.responder.idle)

    def __enter__(self) -> Assistant:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Free the model, once the questions that wait are answered; the bank stays open."""
        self._worker.close()
        with self.engine.lock:
            self.responder.close()

    def prepare(self) -> None:
        """Measure the gate's whitening now, unless the bank has it: the first question need not wait."""

        def prepare() -> None:
            self.opening.memories.prepare()
            _ = self.opening.memories.text_embedder

        self.on_model(prepare)

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

        Iterate over what comes back for the text as it is decoded; its ``answer`` is the whole one.
        ``mode``: "ask", "direct", "recall", "irag" or "bare".
        """
        if mode not in MODES:
            raise InputError(f"got the mode {mode!r}; expected one of {', '.join(MODES)}")
        if not isinstance(question, str):
            messages = [*question]
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
        scope, limited = given.pop("scope", EVERYTHING), given.get("max_tokens") is not None
        strict = given.pop("strict", None)
        how = {
            "style": check_style(given.pop("style", STYLE)),
            "strict": self.bank.get_state(STRICT_STATE) == b"1" if strict is None else bool(strict),
            "on_known": given.pop("on_known", None),
        }
        options = Options.of(RECALL_TOKENS if mode == "recall" else ANSWER_TOKENS, given)
        asked = Question(mode, question, [*history], options, scope, limited, in_talk or bool(history), **how)

        def run(stream: Stream[Answer]) -> Answer:
            with self.engine.lock:
                return self.responder.respond(asked, stream)

        return self._worker.submit(run)

    def complete(
        self, prompt: str | Sequence[int], *, max_tokens: int = 16, logprobs: int | None = None, echo: bool = False,
        **options: Any,
    ) -> Stream[Completion]:  # fmt: skip
        """Queue *prompt*, a text or token ids, for the bare base to continue as it is, without a chat template.

        ``max_tokens`` may be 0. ``logprobs``: score each new token, with ``echo`` those of the prompt too, beside so
        many likeliest ones. Raises InputError.
        """
        how = Options.of(max(1, max_tokens), options)
        tokens = tokens_of(self.engine, prompt)

        def run(stream: Stream[Completion]) -> Completion:
            with self.engine.lock:
                self.responder.idle_reader.expect(None)
                return complete(self.base, tokens, max_tokens, how, stream, logprobs, echo)

        return self._worker.submit(run)

    def try_recall(self, adapter: Adapter, cue: str, *, activated: bool, max_tokens: int = RECALL_TOKENS) -> str:
        """What *adapter* alone, at gate 1, answers to the user turn *cue* (acceptance check)."""

        def recall() -> str:
            self.responder.load([adapter], [1.0], self.responder.prompt(cue), activated)
            return greedy(self.mix, max_tokens).text

        return self.on_model(recall)

    def try_lead(self, adapter: Adapter, cue: str, text: str, *, activated: bool) -> float:
        """How surely :meth:`try_recall` would give *text*: the smallest margin of its tokens, in logits.

        All tokens are read in one pass, each after the right ones before it: where every margin is well
        above the rounding between one pass and token by token, greedy decoding cannot leave the text.
        """

        def lead() -> float:
            self.responder.load([adapter], [1.0], self.responder.prompt(cue), activated)
            meant = [*self.engine.tokenize(text, special=False), self.engine.end_of_turn]
            return min(map(_lead, self.mix.predictions(self.mix.logits(), meant), meant))

        return self.on_model(lead)

    def key(self, text: str, title: str | None = None) -> np.ndarray:
        """The context key of a memory: float32 [D], as stored in the bank."""
        return self.on_model(lambda: self.opening.memories.keys.memory(text, title))

    def found_by(self, text: str, title: str | None = None) -> FoundBy:
        """What the gate finds a memory by: ``bank.add(memory, **assistant.found_by(text, title))``."""
        return self.on_model(lambda: self.opening.memories.found_by(text, title))

    def embed(self, text: str) -> np.ndarray:
        """The vector of *text* by the text embedder, by the base's shallow states without one: float32 [D], unit length."""
        if not text.strip():
            raise InputError("got an empty text; expected some words")

        def run() -> np.ndarray:
            memories = self.opening.memories
            if memories.text_embedder is not None:
                return memories.text_embedder.memory(text, None)
            return memories.prepare().keys(memories.keys.memory(text, None)[None])[0]

        return self.on_model(run)

    def alike(self, text: str, title: str | None = None) -> tuple[Record, float] | None:
        """The memory most like *text*, and how alike it is (a cosine); None where none is near."""
        return self.on_model(lambda: self.opening.memories.most_alike(text, title))

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

            with self.engine.lock:
                return self.opening.memories.rekey(embedder, progress)

        return self._worker.submit(run).wait()

    def gate(self, question: str, *, scope: Scope = EVERYTHING, history: History = ()) -> Judged:
        """What the gate makes of *question*: the shallow layers are run, nothing is answered."""
        if not question.strip():
            raise InputError("got an empty question; expected some words")

        def judge() -> Judged:
            self.responder.refresh()
            return self.opening.judge(question.strip(), scope, history)

        return self.on_model(judge)

    @property
    def encoder(self) -> Context:
        """A context that stops at the embedding layer: a tenth of a prefill, and no answers."""
        return self.on_model(lambda: self.responder.encoder)

    def on_model(self, work: Callable[[], T]) -> T:
        """Run *work* on the thread that answers questions, in its turn, with the model to itself; returns its result.

        All that computes belongs there. OpenMP keeps a team of threads for every thread that ever computed, and as
        soon as these are more than the cores all of them sleep at each step: on two cores a token then takes 1.5
        times as long, for good. Raises MegartError after :meth:`close`.
        """

        def run() -> T:
            with self.engine.lock:
                return work()

        return self._worker.call(run)


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


def _lead(logits: np.ndarray, token: int) -> float:
    """The logit of *token* above the best other one's."""
    rivals = np.delete(logits, token)
    return float(logits[token] - rivals.max())
