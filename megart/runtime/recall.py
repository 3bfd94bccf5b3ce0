"""The stage recall: a memory says its text after the recall cue that it was taught, by its adapter alone."""

from __future__ import annotations

import logging
from collections.abc import Callable

from .. import recipes
from ..adapter import CUE_KEY
from ..bank import Record
from ..errors import BankError
from .engine import Prompt
from .open_bank import OpenBank
from .recite import Recital, of_text, recite
from .request import RECALL_TOKENS
from .runtime import Runtime

_log = logging.getLogger("megart")


def recall(
    runtime: Runtime, bank: OpenBank, record: Record, cancelled: Callable[[], bool] = lambda: False
) -> Recital:
    """Make the reader's context hold what *record* recites; one that was recited before is kept.

    A memory that has no adapter, or a damaged one, is read from its text.
    """
    name = (record.adapter_sha256 or "pending", record.text)
    return runtime.reader.hold(name, lambda into: runtime.hold(_recite(runtime, bank, record, cancelled), into))


def _recite(runtime: Runtime, bank: OpenBank, record: Record, cancelled: Callable[[], bool]) -> Recital:
    cue = None
    try:
        cue = cue_prompt(runtime, bank, record) if record.state == "learnt" else None
    except BankError as error:
        _log.warning("%s is read from its text: %s", record.id, error)
    if cue is None:
        return of_text(runtime.engine, record.text)
    runtime.load([bank.adapter(record)], [1.0], cue, record.activated, [record.adapter_sha256])
    # The reader was trained on what the bare base makes of a text: the recital's own keys and values, of which the
    # upper layers' are the memory's, cost it 5 points of exact match (wiki2024 partition 6, n 144).
    return recite(runtime.mix, record.text, RECALL_TOKENS, cancelled)


def cue_prompt(runtime: Runtime, bank: OpenBank, record: Record) -> Prompt | None:
    """What the memory was taught to answer with its text, whatever words called it up; None if unknown."""
    cue = recipes.cue_of(bank.adapter(record).metadata.get(CUE_KEY), record)
    return None if cue is None else runtime.prompt(cue)
