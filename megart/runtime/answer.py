"""What an Assistant returns: plain data, in the shape that ``megart ask --json`` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class OpenedMemory:
    """A memory that took part in an answer; ``gate`` is its weight among those that opened, in (0, 1].

    ``pending`` memories are not learnt yet: their text stood in the prompt.
    """

    id: str
    title: str
    gate: float
    pending: bool = False


@dataclass(frozen=True)
class Source:
    """What an answer was read from: the ``text`` that a memory recited, and where the answer's own words stand in it.

    ``span``: [start, end) in characters of ``text``; ``created``: when the memory was written, ISO 8601.
    """

    id: str
    title: str
    text: str
    span: tuple[int, int]
    created: str = ""

    @property
    def words(self) -> str:
        """The answer in the fewest words."""
        return self.text[self.span[0] : self.span[1]]

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "span": list(self.span)}


@dataclass(frozen=True)
class Timings:
    """Milliseconds of each step, and token counts.

    ``recall_ms``: memories reciting their texts (0 where the recital was kept from before); ``read_ms``: the reader.

    ``embed_ms``: reading the question's states, and the shallow pass for them where the base does not
    encode the whole prompt anyway; ``rerank_ms``: reading what memories that are near each other say (see
    :mod:`megart.gate.rerank`), most often nothing; ``mix_ms``: opening the adapters' files; ``install_ms``: mixing them
    into the slot; ``prefill_ms``: the prompt, under the base or the mix.
    ``guessed_tokens``: how many of the answer's tokens a memory's text guessed right, so that they were decoded
    together.
    """

    embed_ms: float = 0.0
    gate_ms: float = 0.0
    rerank_ms: float = 0.0
    mix_ms: float = 0.0
    install_ms: float = 0.0
    prefill_ms: float = 0.0
    recall_ms: float = 0.0
    read_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    guessed_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """``text`` of the answer, the ``memories`` that opened (best first), and ``timings``.

    ``tokens`` are the ids of the answer; ``finish`` is "stop", "length" or "cancelled"; ``recalled``
    holds what iRAG recalled before it answered. ``truncation`` is the share of the mix's norm that was
    lost because the memories needed more rank than the slot holds, nearly always 0. ``excluded`` are
    memories that the gate would have opened too, but that work on another part of the prompt and so cannot
    share a mix; answers in turn leave none out. Where several answer in turn, the times up to the first token are of
    the first.

    ``known``: True where the answer was read from memories, the ``sources``; False where the question is one for the
    bank but no memory answers it, and None where it is a general one: the text is the bare model's then, or nothing
    under ``strict``. ``grounded``: every figure and name of the answer stands in a source. ``style``: the form of the
    text. ``nearest``: titles of the memories nearest to a question that is not known. ``older``: what older
    memories say to the question, where a newer one has answered it.
    """

    text: str
    mode: str
    memories: list[OpenedMemory] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    tokens: list[int] = field(default_factory=list)
    finish: str = "stop"
    recalled: str | None = None
    truncation: float = 0.0
    excluded: list[OpenedMemory] = field(default_factory=list)
    known: bool | None = None
    grounded: bool = False
    sources: list[Source] = field(default_factory=list)
    style: str | None = None
    nearest: list[str] = field(default_factory=list)
    older: list[Source] = field(default_factory=list)

    @property
    def left_out(self) -> list[OpenedMemory]:
        """The former name of ``excluded``."""
        return self.excluded

    @property
    def token_ms(self) -> float:
        """Milliseconds of each token after the first; 0 where there is none."""
        after = self.timings.total_ms - self.timings.first_token_ms
        return max(0.0, after) / (self.timings.completion_tokens - 1) if self.timings.completion_tokens > 1 else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        shown: dict[str, Any] = {
            "answer": self.text,
            "mode": self.mode,
            "known": self.known,
            "grounded": self.grounded,
            "sources": [source.to_dict() for source in self.sources],
            "memories": [
                {"id": m.id, "title": m.title, "gate": round(m.gate, 6)} | ({"pending": True} if m.pending else {})
                for m in self.memories
            ],
            "timings": {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self.timings).items()},
        }
        if self.style is not None:
            shown["style"] = self.style
        if self.older:
            shown["older"] = [source.to_dict() for source in self.older]
        if self.nearest:
            shown["nearest"] = self.nearest
        if self.truncation:
            shown["truncation"] = round(self.truncation, 6)
        if self.excluded:
            shown["excluded"] = [{"id": m.id, "title": m.title, "gate": round(m.gate, 6)} for m in self.excluded]
        if self.recalled is not None:
            shown["recalled"] = self.recalled
        return shown
