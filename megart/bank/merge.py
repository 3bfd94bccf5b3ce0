"""Memories from one bank or pack into another: unpack, merge, and what changed since a pack."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ..errors import BankError, BaseMismatchError, InputError
from .catalog import FILE_NAME
from .features import embedder_name
from .memory import Memory, Record, record_json
from .packed import STATES, Delta, PackedBank
from .store import Bank

# In the state of a bank: which pack's content it holds, so that a delta over that pack fits.
HOLDS = "holds"
_PAPER = b"paper"  # the embedder whose keys are of another kind than all others'


class _Source:
    """A bank or a pack to take memories out of, with what the gate finds them by."""

    def __init__(self, bank: Bank | PackedBank):
        if isinstance(bank, PackedBank) and not bank.has_text:
            raise InputError(f"{bank.path} holds no texts and can only be asked where it lies; get the pack with texts")
        self.bank = bank
        self.embedder = bank.get_state("embedder")
        ids, keys = bank.keys()
        self._keys, self._words = dict(zip(ids, keys, strict=True)), bank.words()
        self._vectors = bank.vectors(self.name)
        self._fits: bool | None = None

    @property
    def name(self) -> str:
        return embedder_name(self.embedder)

    def give(self, record: Record, into: Bank, memory: Memory, *, over: bool = False) -> Record:
        """Store *record* in *into* as *memory*, with its adapter and dates. Raises InputError, BankError."""
        if record.id not in self._keys:
            raise BankError(f"{record.id} has no context key in {self.bank.path}; run: megart rekey")
        if self._fits is None:  # token states are of one whitening; a delta has it only where it changed
            delta = isinstance(self.bank, PackedBank) and self.bank.delta is not None
            self._fits = delta or into.get_state("whitening") == self.bank.get_state("whitening")
        fits = self._fits and record.id in self._words
        vector = self._vectors.get(record.id)
        return into.add(
            memory,
            key=np.ascontiguousarray(self._keys[record.id], np.float32),
            evidence=(self._words[record.id], self.bank.tokens([record.id])[0]) if fits else None,
            vector=None if vector is None else (self.name, np.asarray(vector, np.float32)),
            adapter=self.bank.adapter_bytes(record.id) if record.state == "learnt" else None,
            recipe=record.recipe,
            activated=record.activated,
            rank=record.rank,
            training=record.training,
            dates=(record.created_at, record.learnt_at),
            replace=over,
        )


def unpack(pack: PackedBank, folder: str | Path) -> Bank:
    """A new bank in *folder*, missing or empty, with all that *pack* holds. Raises BankError, InputError.

    It is made beside its place, as .NAME.unpacking, until it is whole: a bank of some of the memories would look like
    one of all. What a killed run left there the next one goes on with.
    """
    if pack.delta is not None:
        raise InputError(
            f"{pack.path} holds only what changed since another pack; give the bank that was unpacked of it"
        )
    target, source = Path(folder).expanduser().absolute(), _Source(pack)
    new = target.with_name(f".{target.name}.unpacking")
    try:
        _check_free(target)
        with Bank.create(new, pack.model, exist_ok=True) as bank:
            for record in bank.records():
                if pack.find(record.id) is None:
                    bank.remove(record.id)
            _take_states(bank, pack)
            for record in pack.records():
                source.give(record, bank, record.memory, over=True)
            bank.set_state(HOLDS, pack.content.encode())
        if target.is_dir():
            target.rmdir()
        os.rename(new, target)
    except OSError as error:
        raise BankError(f"cannot make a bank at {target}: {error.strerror or error}") from error
    return Bank.open(target)


def _check_free(folder: Path) -> None:
    if (folder / FILE_NAME).exists():
        raise BankError(f"there is a bank at {folder} already; choose another folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise BankError(f"{folder} is there and not empty; choose an empty or a new folder")


def _take_states(into: Bank, source: Bank | PackedBank) -> None:
    for name in STATES:
        if (value := source.get_state(name)) is not None and into.get_state(name) != value:
            into.set_state(name, value)


# -- merge ------------------------------------------------------------------------------------------


@dataclass
class Merged:
    """What became of the memories of the sources, by id: ``added``; ``same``: their text was there already; ``learnt``:
    it was, and pending, and has its adapter now; ``renamed``: (id in the source, id in the bank)."""

    added: list[str] = field(default_factory=list)
    same: list[str] = field(default_factory=list)
    learnt: list[str] = field(default_factory=list)
    renamed: list[tuple[str, str]] = field(default_factory=list)


def merge(sources: Sequence[Bank | PackedBank], into: Bank, *, rename: bool = False) -> Merged:
    """Put the memories of *sources* into *into*, which keeps all it has. A memory that expired is left out.

    The same text is one memory, under the id that it has in *into*; what its title and metadata lack there is taken
    over. One id with two texts is refused before anything is written, or, with *rename*, comes in under an id of its
    own. May be repeated. Raises InputError, BankError, BaseMismatchError.
    """
    for bank in sources:
        _check_fits(bank, into)
    opened = [_Source(source) for source in sources]
    texts = {record.text: record.id for record in into.records()}
    ids = {record.id.lower(): record.text for record in into.records()}
    done, todo, clashes = Merged(), [], []
    for source in opened:
        for record in source.bank.records():
            if record.expires is not None and record.expires <= time.time():
                continue
            memory = record.memory
            if record.text not in texts and record.id.lower() in ids:
                clashes.append(record.id)
                memory = replace(memory, id=_other_id(record, ids))
                done.renamed.append((record.id, memory.id or ""))
            todo.append((source, record, memory))
            texts.setdefault(record.text, memory.id or "")
            ids.setdefault((memory.id or "").lower(), record.text)
    if clashes and not rename:
        some = ", ".join(clashes[:5]) + (", ..." if clashes[5:] else "")
        raise InputError(
            f"{len(clashes)} ids stand for other texts in the bank, nothing was merged: {some}; "
            "give --rename to take these memories under other ids"
        )
    if not len(into):
        _take_states(into, sources[0])
    for source, record, memory in todo:
        there = into.find(texts[record.text])
        if there is None:
            done.added.append(source.give(record, into, memory).id)
            continue
        if there.state == "pending" and record.state == "learnt":
            there = source.give(replace(record, created_at=there.created_at), into, there.memory, over=True)
            done.learnt.append(there.id)
        else:
            done.same.append(there.id)
        _complete(into, there, record)
    return done


def _check_fits(source: Bank | PackedBank, into: Bank) -> None:
    if source.path == into.path:
        raise InputError(f"{into.path} is to be merged into itself; give another bank")
    if isinstance(source, PackedBank) and source.delta is not None:
        raise InputError(f"{source.path} holds only what changed since another pack; apply it alone")
    _check_base(source, into)
    kinds = {bank.get_state("embedder") == _PAPER for bank in (source, into) if len(bank)}
    if len(kinds) > 1:
        raise InputError(
            f"keys of {source.path} and {into.path} are of different kinds; run megart rekey on one of them"
        )


def _other_id(record: Record, ids: dict[str, str]) -> str:
    """An id that nobody has, the same each time: of the id that it had and its text."""
    digest = hashlib.sha256(record.text.encode()).hexdigest()
    for digits in (6, 12, 20):
        id = f"{record.id[: 63 - digits].rstrip('.')}-{digest[:digits]}"
        if ids.get(id.lower(), record.text) == record.text:
            return id
    raise InputError(f"no other id is free for {record.id!r}; export that memory and give it one")


def _complete(into: Bank, there: Record, record: Record) -> None:
    """Put into *there*'s metadata what only *record* has of the same text."""
    lacking = {name: value for name, value in record.metadata.items() if name not in there.metadata}
    more = [tag for tag in record.tags if tag not in there.tags]
    if more:
        lacking |= {"tags": [*there.tags, *more]}
    if lacking:
        into.annotate(there.id, lacking)


# -- delta packs -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Applied:
    """Ids that a delta pack added, changed and forgot in a bank."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    forgotten: tuple[str, ...]


def apply_delta(pack: PackedBank, into: Bank) -> Applied:
    """Make *into*, which holds what the pack held that *pack* goes on from, hold what changed since.

    Memories that the bank has besides are left alone. Nothing is changed where the bank holds another pack's content,
    or where somebody changed one of the memories here. An interrupted run can be repeated. Raises InputError,
    BankError.
    """
    delta = pack.delta
    if delta is None:
        raise InputError(f"{pack.path} is a whole pack; run: megart unpack {pack.path} FOLDER, or megart merge")
    _check_base(pack, into)
    holds = (into.get_state(HOLDS) or b"").decode("ascii", "replace")
    if holds == delta.becomes != delta.since:
        return Applied((), (), ())
    if holds != delta.since:
        raise InputError(
            f"{pack.path} goes on from the pack {delta.since[:12]}, "
            f"the bank {into.path} holds {holds[:12] or 'no pack'}; unpack that pack first"
        )
    records = pack.records()
    _check_unchanged_here(records, delta, into)
    source, changed = _Source(pack), []
    _take_states(into, pack)
    for record in records:
        changed.append(source.give(record, into, record.memory, over=True).id)
    gone = [id for id in delta.forgotten if into.find(id) is not None]
    for id in gone:
        into.remove(id)
    into.set_state(HOLDS, delta.becomes.encode())
    return Applied(
        tuple(id for id in changed if id not in delta.was), tuple(id for id in changed if id in delta.was), tuple(gone)
    )


def _check_base(source: Bank | PackedBank, into: Bank) -> None:
    if source.base.sha256 != into.base.sha256:
        raise BaseMismatchError(
            f"{source.path} is of the model {source.base.name} (sha256 {source.base.sha256[:12]}), "
            f"{into.path} of {into.base.name} (sha256 {into.base.sha256[:12]}); memories belong to one model"
        )


def _check_unchanged_here(records: Sequence[Record], delta: Delta, into: Bank) -> None:
    """Raises InputError where the bank's own memories would be lost."""
    new = {record.id: record_json(record) for record in records}
    touched = []
    for id in (*new, *delta.forgotten):
        state = _state_of(into, id)
        done = state is None if id in delta.forgotten else state == new[id]
        before = None if state is None else hashlib.sha256(state).hexdigest()
        if not done and before != delta.was.get(id):
            touched.append(id)
    if touched:
        some = ", ".join(touched[:5]) + (", ..." if touched[5:] else "")
        raise InputError(
            f"{len(touched)} memories were changed in {into.path} since it was unpacked, nothing was applied: {some}; "
            "unpack a whole pack into a new folder and merge this bank into it"
        )


def _state_of(bank: Bank, id: str) -> bytes | None:
    record = bank.find(id)
    return None if record is None else record_json(record)


# -- diff --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diff:
    """Ids that only the second has, only the first has, and those that differ, with the names of the fields that do."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    changed: dict[str, tuple[str, ...]]


_FIELDS = ("title", "metadata", "state", "recipe", "activated", "rank", "adapter_sha256", "created_at")
_TEXTS = ("text", "paraphrases", "questions")


def diff(first: Bank | PackedBank, second: Bank | PackedBank) -> Diff:
    """What changed from *first* to *second*; upper and lower case of ids are the same. Raises InputError, BankError."""
    for bank in (first, second):
        if isinstance(bank, PackedBank) and bank.delta is not None:
            raise InputError(f"{bank.path} holds only what changed since another pack; compare whole packs or banks")
    old, new = ({r.id.lower(): r for r in bank.records()} for bank in (first, second))
    bare = any(isinstance(bank, PackedBank) and not bank.has_text for bank in (first, second))
    fields = _FIELDS[2:] if bare else (*_TEXTS, *_FIELDS)
    changed = {}
    for id, record in new.items():
        if id in old:
            names = tuple(name for name in fields if getattr(record, name) != getattr(old[id], name))
            if names:
                changed[record.id] = names
    added = tuple(r.id for id, r in new.items() if id not in old)
    removed = tuple(r.id for id, r in old.items() if id not in new)
    return Diff(added, removed, changed)
