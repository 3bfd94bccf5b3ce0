"""The stage recall: a memory says its text after the recall cue that it was taught, by its adapter alone."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from .. import prompts, recipes
from ..adapter import CUE_KEY
from ..bank import Record
from ..errors import BankError
from .engine import Prompt
from .recite import Recital, of_text, recite
from .request import RECALL_TOKENS
from .runtime import Runtime

if TYPE_CHECKING:
    from .open_bank import OpenBank

_log = logging.getLogger("megart")


def recall(
    runtime: Runtime, bank: OpenBank, record: Record, cancelled: Callable[[], bool] = lambda: False
) -> Recital:
    """Make the reader's context hold what *record* recites; one that was recited before is kept.

    A memory that has no adapter, or a damaged one, is read from its text.
    """
    name = recital_name(record)
    bank.recited.add(name)
    return runtime.reader.hold(name, lambda into: runtime.hold(_recite(runtime, bank, record, cancelled), into))


def recital_name(record: Record) -> tuple[str, str]:
    """What the reader keeps the recital of *record* by."""
    return record.adapter_sha256 or "pending", record.text


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


def unheld_text(runtime: Runtime, bank: OpenBank, record: Record) -> str:
    """What *record*, whose text nobody holds (a pack without texts), says of itself; "" where its adapter is damaged."""
    if record.id not in bank.unheld:
        try:
            cue = cue_prompt(runtime, bank, record) or runtime.prompt(prompts.RECALL_CUE)
            runtime.load([bank.adapter(record)], [1.0], cue, record.activated, [record.adapter_sha256])
        except BankError as error:
            _log.warning("%s says nothing: %s", record.id, error)
            return ""
        bank.unheld[record.id] = recite(runtime.mix, "", RECALL_TOKENS).text
    return bank.unheld[record.id]


def cue_prompt(runtime: Runtime, bank: OpenBank, record: Record) -> Prompt | None:
    """What the memory was taught to answer with its text, whatever words called it up; None if unknown."""
    cue = recipes.cue_of(bank.adapter(record).metadata.get(CUE_KEY), record)
    return None if cue is None else runtime.prompt(cue)
