"""Save now, learn later: text and context key are committed at once, the adapter comes another day.

Needs the runtime but no torch. The key is made at once, not when the bank is next opened: a shallow
layer of the base gives it in milliseconds, every row of a bank has its key, and a bank that can only
be read still finds what was saved.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from .bank import Bank, Memory, Record
from .errors import InputError
from .models import Model

if TYPE_CHECKING:
    from .runtime.assistant import Assistant

# (memory, seconds it took, how many are saved, of how many)
OnSaved = Callable[[Memory, float, int, int], None]


def save_pending(
    bank: Bank,
    memories: list[Memory],
    *,
    over: Mapping[str, Memory | None] | None = None,
    model: str | Path | Model | None = None,
    assistant: Assistant | None = None,
    on_loading: Callable[[], None] | None = None,
    on_saved: OnSaved | None = None,
) -> None:
    """Commit each of *memories* to *bank* in the state "pending", one transaction each.

    A memory that is there already is replaced; with ``over`` only while the bank still holds what it says
    for that id (None: nothing). Raises InputError, before anything is saved, when a text is longer than a
    recall may be; BaseMismatchError; ChangedError.
    """
    from .plan import SPLIT
    from .runtime import assistant as runtime

    if assistant is None:
        if on_loading:
            on_loading()
        with runtime.Assistant(bank, model=model) as loaded:
            return save_pending(bank, memories, over=over, assistant=loaded, on_saved=on_saved)
    for memory in memories:
        tokens = len(assistant.engine.tokenize(memory.text, special=False)) + 1  # as taught: with the end of the turn
        if tokens > runtime.RECALL_TOKENS:
            raise InputError(f"{memory.id}: {tokens} {SPLIT.format(runtime.RECALL_TOKENS)}")
    for done, memory in enumerate(memories, start=1):
        started = time.perf_counter()
        stood = True if over is None else over.get(memory.id or "")
        bank.add(memory, **assistant.index_entry(memory.text, memory.title), replace=stood)
        if on_saved:
            on_saved(memory, time.perf_counter() - started, done, len(memories))
    return None


def save_one(bank: Bank, memory: Memory, assistant: Assistant) -> Record:
    """Save *memory* as pending; one with the same text that is there already stays. Raises as :func:`save_pending`."""
    from .plan import plan

    bank.remove_expired()
    todo = plan(bank, [memory], False)
    save_pending(bank, todo.memories, over=todo.over, assistant=assistant)
    return bank.get(todo.order[0])
