"""What an Assistant returns: plain data, in the shape that ``megart ask --json`` prints."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class OpenedMemory:
    """A memory that took part in an answer; ``gate`` is its weight in the mix, in (0, 1].

    ``pending`` memories are not learnt yet: their text stood in the prompt.
    """

    id: str
    title: str
    gate: float
    pending: bool = False


@dataclass(frozen=True)
class Timings:
    """Milliseconds of each step, and token counts."""

    embed_ms: float = 0.0
    gate_ms: float = 0.0
    mix_ms: float = 0.0
    install_ms: float = 0.0
    prefill_ms: float = 0.0
    first_token_ms: float = 0.0
    total_ms: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


@dataclass(frozen=True)
class Answer:
    """``text`` of the answer, the ``memories`` that opened (best first), and ``timings``.

    ``tokens`` are the ids of the answer; ``finish`` is "stop", "length" or "cancelled"; ``recalled``
    holds what iRAG recalled before it answered. ``truncation`` is the share of the mix's norm that was
    lost because the memories needed more rank than the slot holds, nearly always 0.
    """

    text: str
    mode: str
    memories: list[OpenedMemory] = field(default_factory=list)
    timings: Timings = field(default_factory=Timings)
    tokens: list[int] = field(default_factory=list)
    finish: str = "stop"
    recalled: str | None = None
    truncation: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """The object that ``--json`` prints."""
        shown: dict[str, Any] = {
            "answer": self.text,
            "mode": self.mode,
            "memories": [
                {"id": m.id, "title": m.title, "gate": round(m.gate, 6)} | ({"pending": True} if m.pending else {})
                for m in self.memories
            ],
            "timings": {k: round(v, 3) if isinstance(v, float) else v for k, v in asdict(self.timings).items()},
        }
        if self.truncation:
            shown["truncation"] = round(self.truncation, 6)
        if self.recalled is not None:
            shown["recalled"] = self.recalled
        return shown
