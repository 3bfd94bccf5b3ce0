"""What a run of teaching has to do, what it may replace in the bank, and what it says of the rest.

A run takes minutes or hours, and other processes may change the bank meanwhile: what stood there when
the run began is all that it may replace.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .bank import Bank, Memory, Record
from .errors import ChangedError, InputError, MemorizeError

ATTEMPTS = 3
# Of a memory that is too long: how many tokens it may have, and the remedy.
SPLIT = "tokens, but a memory may have {}; split the text, or have files cut smaller (--max-words)"
# Hexadecimal digits of the hash in an id that is made; more only where another memory has that id.
ID_DIGITS = (6, 12, 20)


@dataclass(frozen=True)
class Plan:
    """What is to be done about the memories that were given.

    ``memories``: those to be taught or saved, each with its id; ``over``: by these ids, what the bank held
    at that moment, which is all that they may replace; ``order``: the ids of everything given.
    """

    memories: list[Memory]
    over: dict[str, Memory | None]
    order: list[str]


def plan(bank: Bank, memories: Iterable[Memory], again: bool) -> Plan:
    """What is to be taught. Raises InputError for one id with two texts, here or in the bank without *again*."""
    todo: dict[str, Memory] = {}
    over: dict[str, Memory | None] = {}
    texts: dict[str, str] = {}
    order = []
    for given in memories:
        memory, there = _named(bank, given, texts)
        key = (memory.id or "").lower()  # as in the bank, A and a are one id
        if texts.setdefault(key, memory.text) != memory.text:
            raise InputError(f"two memories with the id {memory.id!r} and different texts")
        if there and there.text != memory.text and not again:
            raise InputError(f"{memory.id!r} is in the bank with another text; give another id, or --replace")
        order.append(there.id if there else memory.id or "")
        if there is None or again or there.state != "learnt":
            todo[key] = memory
            over[memory.id or ""] = there.memory if there else None
    return Plan(list(todo.values()), over, list(dict.fromkeys(order)))


def _named(bank: Bank, memory: Memory, texts: dict[str, str]) -> tuple[Memory, Record | None]:
    """*memory* with its id, and what the bank has of that id.

    An id that nobody gave is made longer where a memory of another text has it, among *texts* or in the bank.
    """
    if memory.id:
        return memory, bank.find(memory.id)
    for digits in ID_DIGITS:
        id = memory.default_id(digits)
        there = bank.find(id)
        if texts.get(id.lower(), memory.text) == memory.text and (there is None or there.text == memory.text):
            break
    return replace(memory, id=id), there


def commit(bank: Bank, memory: Memory, over: Memory | None, **learnt: Any) -> str:
    """Store a learnt *memory* where the bank still holds *over*: "learnt", "forgotten" or "changed" (nothing stored).

    ``learnt``: further arguments of ``Bank.add``. What another process learnt of the same text counts.
    """
    try:
        bank.add(memory, replace=over, **learnt)
    except ChangedError:
        there = bank.find(memory.id or "")
        if there is None:
            return "forgotten"
        return "learnt" if (there.text, there.state) == (memory.text, "learnt") else "changed"
    return "learnt"


def unlearnt(bank: Bank, failed: Sequence[str], changed: Sequence[str], total: int) -> MemorizeError:
    """The error that says which memories of *total* could not be learnt, and what became of them."""
    parts = []
    if failed:
        there = [bank.find(id) for id in failed]
        outcome = "were not saved"
        if all(record is not None for record in there):
            pending = all(record.state == "pending" for record in there if record)
            outcome = "stay pending" if pending else "are in the bank as they were"
        parts.append(
            f"{len(failed)} of {total} memories could not be recalled after {ATTEMPTS} attempts "
            f"and {outcome}: {_some(failed)}; make them shorter or split them"
        )
    if changed:
        parts.append(
            f"{len(changed)} of {total} memories were changed in the bank meanwhile and are left as they are: "
            f"{_some(changed)}"
        )
    return MemorizeError("; ".join(parts))


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
