"""How well a base reads: a few shipped questions of our own about texts that no model knows."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import partial
from importlib import resources

from ..gate.words import terms
from . import ask
from .answer import Source
from .recite import of_text
from .runtime import Runtime

QUESTIONS = 12
SECONDS = 45.0  # no further question is begun after so long
ENOUGH = 0.7
# In the bank: a JSON object, as `Aptitude.to_json` makes it.
STATE = "reading"


@dataclass(frozen=True)
class Aptitude:
    """``right`` of ``asked`` questions answered by the right sentence of three; ``trained``: there is a reader."""

    right: int
    asked: int
    trained: bool

    @property
    def enough(self) -> bool:
        return self.right >= ENOUGH * self.asked

    def to_json(self) -> bytes:
        return json.dumps(vars(self)).encode()


def measure(runtime: Runtime) -> Aptitude:
    """Read the demo's texts, with the base's reader where there is one. On the model's thread."""
    script = json.loads(resources.files("megart").joinpath("data", "demo.json").read_text("utf-8"))
    pairs = [
        (memory, qa) for number in range(3) for memory in script["memories"] for qa in memory["qa"][number : number + 1]
    ]
    reader, right, asked, started = runtime.reader, 0, 0, time.monotonic()
    for memory, qa in pairs[:QUESTIONS]:
        if time.monotonic() - started > SECONDS:
            break
        recital = reader.hold(memory["text"], partial(runtime.hold, of_text(runtime.engine, memory["text"])))
        reading = reader.read(recital, qa["q"], memory["title"])
        sentence = ask.said(Source("", "", recital.text, reading.span), "sentence")
        found = reading.span[0] < reading.span[1] and any(terms(answer) <= terms(sentence) for answer in qa["a"])
        right += found
        asked += 1
    return Aptitude(right, asked, reader.trained)
