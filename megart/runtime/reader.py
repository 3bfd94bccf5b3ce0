"""The reader: answers a question by a span of what a memory recited, and says how sure it is that the span answers.

Its context holds one recital at a time; those used last are kept in host memory, so that a second question about a
memory costs no more than reading the question. With an adapter of its own (``readers.find``) every answer is a span of
the recital's tokens; the bare base answers freely, and the span is what of the recital it said.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from .. import prompts, readers, sentences
from ..adapter import Adapter
from ..gate.words import WORD, fold
from . import items
from .context import Context, Saved
from .engine import Engine
from .fingerprint import Fingerprint
from .generate import greedy
from .recite import Recital
from .slot import Slot

SPAN_TOKENS = 32
KEPT_BYTES = 64 << 20  # of recitals' keys and values
# Tokens that a recital and a question about it may have together.
CONTEXT_TOKENS = 1280
_EDGES = " \t\n.,;:!?\"'“”‘’„«»()[]…–—*|"
# A run of these, and of control tokens that stand in a text: no part of an answer.
_EDGE = rf"(?:[{re.escape(_EDGES)}]|<\|\w+\|>)*"


@dataclass(frozen=True)
class Reading:
    """A reader's answer: ``span``, [start, end) in characters of the recital's text.

    ``odds``: log odds that the text answers the question at all, as the reader puts it (0 by the bare base, which does
    not say); ``logprob``: of the span, nats per token.
    """

    span: tuple[int, int]
    odds: float
    logprob: float


NOTHING_READ = Reading((0, 0), -8.0, -3.0)


class Reader:
    """Reads with *adapter* (None: by the bare base). Not thread-safe: hold the engine's lock."""

    def __init__(self, engine: Engine, adapter: Adapter | None, size: int, name: str = ""):
        self.engine = engine
        self.context = Context(engine, size=min(size, CONTEXT_TOKENS))
        self.slot: Slot | None = None
        self.trained = adapter is not None
        self._recitals: OrderedDict[Hashable, tuple[Recital, Saved]] = OrderedDict()
        if adapter is not None:
            try:
                self.slot = Slot(self.context)
                self.slot.install([adapter], [1.0], Fingerprint(engine.model.sha256, ((name, 1.0),)))
                self._nothing = engine.tokenize(readers.NOTHING, special=False)[0]
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        if self.slot is not None:
            self.slot.close()
        self.context.close()

    def hold(self, name: Hashable, make: Callable[[Context], Recital]) -> Recital:
        """Make the context hold the recital *name*; *make* puts one that is not kept into the context it is given."""
        entry = self._recitals.get(name)
        if entry is not None:
            self._recitals.move_to_end(name)
            self.context.restore(entry[1])
            return entry[0]
        recital = make(self.context)
        self._recitals[name] = recital, self.context.save()
        while len(self._recitals) > 1 and sum(saved.nbytes for _, saved in self._recitals.values()) > KEPT_BYTES:
            self._recitals.popitem(last=False)
        return recital

    def forget(self, names: Iterable[Hashable]) -> None:
        """Keep nothing of these recitals."""
        for name in names:
            self._recitals.pop(name, None)
        self.context.truncate(0)

    def read(self, recital: Recital, question: str, title: str | None) -> Reading:
        """The answer to *question* from *recital*, which the context holds; an empty span where there is none.

        Of a list the answer is from the item that the question names. Raises DecodeError when the question does not fit beside the recital.
        """
        if not recital.tokens:
            return NOTHING_READ
        if self.slot is None:
            return self._free(recital, question, title)
        self.context.decode(self.engine.next_turn(prompts.read(question, title)))
        logits = self.context.logits()
        nothing = float(logits[self._nothing])
        others = np.delete(logits, self._nothing)
        top = float(others.max())
        odds = top + math.log(np.exp(others - top).sum(dtype=np.float64)) - nothing
        item = items.named(recital.text, question)
        within = readers.covering(recital.text, list(recital.ends), *item) if item else None
        tokens, logprob = self._span(recital, logits, *(within or (0, len(recital.tokens))))
        first, last = tokens
        start = recital.ends[first - 1] if first else 0
        return Reading(trimmed(recital.text, start, recital.ends[last - 1]), odds, logprob)

    def choose(self, recital: Recital, question: str, title: str | None, spans: Sequence[tuple[int, int]]) -> int:
        """Which of *spans* of *recital*, in characters, the reader would rather say; the context holds the recital."""
        places = [readers.covering(recital.text, list(recital.ends), *span) for span in spans]
        words = {
            i: [*recital.tokens[slice(*place)], self.engine.end_of_turn] for i, place in enumerate(places) if place
        }
        left = [*words] if self.slot else []
        if len(left) < 2:
            return left[0] if left else 0
        self.context.decode(self.engine.next_turn(prompts.read(question, title)))
        for at in range(SPAN_TOKENS):
            following = np.array(sorted({words[i][at] for i in left}))
            token = int(following[self.context.logits()[following].argmax()])
            left = [i for i in left if words[i][at] == token]
            if len(left) == 1 or token == self.engine.end_of_turn:
                break
            self.context.decode([token])
        return left[0]

    def _span(self, recital: Recital, logits: np.ndarray, first: int, last: int) -> tuple[tuple[int, int], float]:
        """The span within the tokens [first, last) that greedy decoding says where it may say nothing else; nats per token."""
        ends = recital.ends
        begins = [i for i in range(first, last) if _is_seam(recital.text, ends[i - 1] if i else 0)]
        places, length, total = begins, 0, 0.0
        while True:
            following = {p + length: recital.tokens[p + length] for p in places if p + length < last}
            allowed = set(following.values())
            may_end = [p for p in places if length and _is_seam(recital.text, ends[p + length - 1])]
            if may_end:
                allowed.add(self.engine.end_of_turn)
            if not allowed:  # inside a word at the end of a text that was cut short
                break
            choices = np.array(sorted(allowed))
            token = int(choices[logits[choices].argmax()])
            top = float(logits.max())
            total += float(logits[token]) - top - math.log(np.exp(logits - top).sum(dtype=np.float64))
            if token == self.engine.end_of_turn:
                places = may_end
                break
            places = [p for p in places if following.get(p + length) == token]
            length += 1
            if length >= SPAN_TOKENS and any(_is_seam(recital.text, ends[p + length - 1]) for p in places):
                break
            self.context.decode([token])
            logits = self.context.logits()
        return (places[0], places[0] + length), total / (length + 1)

    def _free(self, recital: Recital, question: str, title: str | None) -> Reading:
        turn = prompts.read_freely(question, title)
        self.context.decode(self.engine.next_turn(turn))
        text = greedy(self.context, SPAN_TOKENS).text
        return Reading(spoken_of(recital.text, text), 0.0, 0.0)


def _is_seam(text: str, at: int) -> bool:
    """Whether a word may begin or end at character *at* of *text*; between Chinese or Japanese characters always."""
    if not 0 < at < len(text):
        return True
    before, after = text[at - 1], text[at]
    return not (before.isalnum() and after.isalnum()) or ord(before) > 0x2E7F or ord(after) > 0x2E7F


def trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without white space, punctuation and control tokens at its edges."""
    words = re.fullmatch(f"{_EDGE}(.*?){_EDGE}", text[start:end], re.DOTALL)
    assert words is not None
    return start + words.start(1), start + words.end(1)


def spoken_of(text: str, answer: str) -> tuple[int, int]:
    """What of *text* the *answer* is: the words themselves where they stand in it, else the sentence most like them.

    An empty span where no word of it stands there.
    """
    words = answer.strip(_EDGES)
    match = re.search(rf"(?<!\w){re.escape(words)}(?!\w)", text, re.IGNORECASE) if words else None
    if match:
        return match.span()
    meant = {fold(word) for word in WORD.findall(answer)}
    shared = [(len(meant & {fold(w) for w in WORD.findall(text[a:b])}), a, b) for a, b in sentences.spans(text)]
    most = max(shared, key=lambda row: row[0], default=(0, 0, 0))
    return (most[1], most[2]) if most[0] else (0, 0)
