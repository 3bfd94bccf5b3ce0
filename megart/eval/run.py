"""One run of a suite: its units of work, done one after another, each remembered as it is done.

Knows nothing about what a unit measures; see suites/.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InputError, MemorizeError
from ..memorize import Progress, memorize
from ..models import Model, resolve_model
from ..recipes import RECIPES
from . import data as data_module
from .data import Data, Item, Partition
from .ledger import Ledger, Row, key_of

# Seconds of one unit of a kind on two cores with SmolLM2-135M, where nothing has been measured yet.
SECONDS = {
    "learn": 11.0, "ask": 0.5, "recall": 0.8, "irag": 1.5, "rag": 0.7, "gate": 0.03, "choice": 0.5, "text": 1.0,
    "train": 150.0, "scale": 40.0, "answer": 1.0, "teach": 60.0, "time": 10.0,
}  # fmt: skip


@dataclass(frozen=True)
class EvalOptions:
    """What the user chose. ``limit``: memories per partition; ``questions``: per memory; ``general``: rows of
    general knowledge, of texts and of unrelated questions; ``counts``: bank sizes of the scale suite."""

    suite: str
    files: tuple[Path, ...] = ()
    work: Path = Path("megart-eval")
    bank: Path | None = None
    report: Path | None = None
    limit: int | None = None
    questions: int | None = None
    general: int = 100
    composites: int = 40
    partitions: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    seed: int = 0
    recipe: str = "fast"
    max_tokens: int = 96
    baseline_memories: int = 5
    counts: tuple[int, ...] = (10, 30, 100, 300, 1000, 3000, 10000)
    first: int = 5
    model: str | None = None
    hf: str | None = None
    device: str | None = None
    threads: int | None = None
    judge: str | None = None
    judge_model: str = "default"


@dataclass(frozen=True)
class Unit:
    """A measurement. ``work`` returns its row, or many rows by (method, item), beside which its own is a mark."""

    partition: str
    stage: int
    method: str
    item: str
    kind: str
    work: Callable[[], Row | dict[tuple[str, str], Row]]
    many: bool = False


@dataclass(frozen=True)
class Tick:
    """Progress: ``done`` of ``total`` units, seconds left as measured so far, and what is being done."""

    done: int
    total: int
    seconds_left: float
    doing: str


@dataclass
class PartitionBank:
    """A partition's bank, learnt, with an Assistant that answers from it."""

    part: Partition
    bank: Any
    assistant: Any
    failed: list[str] = field(default_factory=list)

    def close(self) -> None:
        self.assistant.close()
        self.bank.close()

    @property
    def known(self) -> list[Item]:
        """The items whose memory is in the bank."""
        return [item for item in self.part.items if self.bank.find(item.id) is not None]


class Run:
    """Everything a suite needs: data, ledger, one open bank at a time."""

    def __init__(self, options: EvalOptions, on_tick: Callable[[Tick], None] | None = None):
        self.options = options
        if options.recipe not in RECIPES:
            raise InputError(f"got recipe {options.recipe!r}; expected one of {', '.join(RECIPES)}")
        self.model: Model = resolve_model(options.model, options.hf)
        self.data = _limited(data_module.load(options.files or [data_module.shipped()], options.partitions), options)
        if not self.data.partitions and not self.data.conflicts:
            raise InputError("no memory in the data files (with these --partitions); expected rows with a text")
        self.ledger = Ledger(options.work, self.settings())
        self._on_tick = on_tick or (lambda _: None)
        self._taught: PartitionBank | None = None
        self.side: PartitionBank | None = None
        self._spent: defaultdict[str, float] = defaultdict(float)
        self._count: Counter[str] = Counter()
        self._done = self._total = 0
        self._left: Counter[str] = Counter()
        for row in self.ledger:
            self._learn_rate(row.get("kind"), row.get("seconds"))

    def settings(self) -> dict[str, Any]:
        """What a measured row depends on beside its key: a work folder holds rows of one such set."""
        chosen = asdict(self.options)
        names = ("recipe", "seed", "max_tokens", "questions")
        return {"base_sha256": self.model.sha256, "data": self.data.files, **{name: chosen[name] for name in names}}

    # -- units ------------------------------------------------------------------------------

    def wants(self, method: str) -> bool:
        """Whether the user asked for *method*."""
        return self.options.methods is None or method in self.options.methods

    def do(self, units: Sequence[Unit]) -> None:
        """Do the units that the ledger does not hold yet, in their order."""
        todo = [unit for unit in units if self._key(unit) not in self.ledger]
        self._total, self._done = len(units), len(units) - len(todo)
        self._left = Counter(unit.kind for unit in todo)
        self._left["learn"] += sum(self.missing(self.data.partitions[n]) for n in self._names(todo))
        for unit in todo:
            self._tick(f"{unit.partition} {unit.method} {unit.item}".strip())
            started = time.perf_counter()
            learning = self._spent["learn"]
            result = unit.work()
            seconds = time.perf_counter() - started - (self._spent["learn"] - learning)
            row: Any = result
            if unit.many:
                for (method, item), one in row.items():
                    key = (self.options.suite, unit.partition, unit.stage, method, item)
                    self.ledger.add(key, {**one, "of": [unit.method, unit.item]})
                row = {"rows": len(result)}
            self.ledger.add(self._key(unit), {"kind": unit.kind, "seconds": round(seconds, 4), **row})
            self._learn_rate(unit.kind, seconds)
            self._left[unit.kind] -= 1
            self._done += 1
        self._tick("done")

    def estimate(self, units: Sequence[Unit]) -> float:
        """Seconds that the units not done yet will take, at the rates measured so far."""
        todo = [unit for unit in units if self._key(unit) not in self.ledger]
        learn = sum(self.missing(self.data.partitions[name]) for name in self._names(todo))
        return sum(self._rate(unit.kind) for unit in todo) + learn * self._rate("learn")

    def rows(self, units: Sequence[Unit]) -> list[Row]:
        """The rows of *units*, and of nothing else that the work folder may hold from runs of other limits."""
        wanted = {self._key(unit) for unit in units}
        rows = []
        for row in self.ledger:
            suite, partition, stage, *own = key_of(row)
            if (suite, partition, stage, *row.get("of", own)) in wanted or self._is_note(row):
                rows.append(row)
        return rows

    def _is_note(self, row: Row) -> bool:
        part = self.data.partitions.get(row["partition"])
        mine = row["suite"] == self.options.suite and part is not None and row["stage"] == len(part.items)
        return mine and row["method"] in ("learnt", "unlearnable")

    def _key(self, unit: Unit) -> tuple[str, str, int, str, str]:
        return (self.options.suite, unit.partition, unit.stage, unit.method, unit.item)

    def _names(self, units: Sequence[Unit]) -> list[str]:
        return [n for n in dict.fromkeys(unit.partition for unit in units) if n in self.data.partitions]

    def _rate(self, kind: str) -> float:
        measured = self._count[kind]
        return self._spent[kind] / measured if measured else SECONDS.get(kind, 1.0)

    def _learn_rate(self, kind: str | None, seconds: float | None) -> None:
        if kind and seconds is not None:
            self._spent[kind] += seconds
            self._count[kind] += 1

    def _tick(self, doing: str) -> None:
        left = sum(max(0, count) * self._rate(kind) for kind, count in self._left.items())
        self._on_tick(Tick(self._done, self._total, left, doing))

    # -- banks ------------------------------------------------------------------------------

    def bank_folder(self, name: str) -> Path:
        """Where the bank of a partition lives: in --bank, or in the work folder."""
        given = self.options.bank
        if given is None:
            return self.options.work / "banks" / name
        if (given / "catalog.sqlite").is_file():
            if len(self.data.partitions) > 1:
                raise InputError(f"{given} is one bank, but the data has {len(self.data.partitions)} partitions")
            return given
        return given / name

    def missing(self, part: Partition) -> int:
        """Memories of *part* that its bank has not learnt yet."""
        from ..bank import Bank

        folder = self.bank_folder(part.name)
        if not (folder / "catalog.sqlite").is_file():
            return len(part.items)
        with Bank.open(folder) as bank:
            there = {record.id for record in bank.records("learnt")}
        return sum(item.id not in there for item in part.items)

    def taught(self, name: str) -> PartitionBank:
        """The bank of a partition, its memories learnt; closes the one that was open."""
        if self._taught is None or self._taught.part.name != name:
            self.close_desk()
            self._taught = self.open_partition(self.data.partitions[name], self.bank_folder(name))
            self._note_learning(self._taught)
        return self._taught

    def _note_learning(self, taught: PartitionBank) -> None:
        """Rows on how the memories were learnt, whenever that was."""
        for item in taught.known:
            key = (self.options.suite, taught.part.name, len(taught.part.items), "learnt", item.id)
            if key not in self.ledger:
                record = taught.bank.get(item.id)
                study = {name: record.training.get(name) for name in ("steps", "seconds", "recall")}
                self.ledger.add(key, {"rank": record.rank, "bytes": record.adapter_bytes, "study": study})

    def open_partition(self, part: Partition, folder: Path) -> PartitionBank:
        """A bank in *folder* that holds the memories of *part* (learnt now if need be), and an Assistant."""
        from ..bank import Bank
        from ..runtime.assistant import Assistant

        bank = Bank.create(folder, self.model, exist_ok=True)
        try:
            failed = self.learn(bank, part)
            return PartitionBank(part, bank, Assistant(bank, model=self.model, threads=self.options.threads), failed)
        except BaseException:
            bank.close()
            raise

    def learn(self, bank: Any, part: Partition) -> list[str]:
        """Teach what *bank* lacks; returns the ids that could not be learnt."""
        there = {record.id for record in bank.records("learnt")}
        tried = f"learn/{part.name}"
        todo = [item for item in part.items if item.id not in there]
        known = {r["item"] for r in self.ledger if r["method"] == "unlearnable" and r["partition"] == part.name}
        todo = [item for item in todo if item.id not in known]
        if not todo:
            return sorted(known)
        started = time.perf_counter()

        def report(event: Progress) -> None:
            if event.state == "learnt":
                self._left["learn"] -= 1
            if event.state != "studying":
                self._tick(f"{tried}: {event.done}/{event.total}")

        try:
            memorize(
                bank, [item.memory for item in todo], recipe=self.options.recipe, device=self.options.device,
                model=self.model, progress=report,
            )  # fmt: skip
        except MemorizeError:
            pass
        seconds = (time.perf_counter() - started) / len(todo)
        self._spent["learn"] += seconds * len(todo)
        self._count["learn"] += len(todo)
        failed = [item.id for item in todo if bank.find(item.id) is None]
        for id in failed:
            key = (self.options.suite, part.name, len(part.items), "unlearnable", id)
            self.ledger.add(key, {})
        return sorted({*known, *failed})

    def close_desk(self) -> None:
        if self._taught is not None:
            self._taught.close()
            self._taught = None

    def open_side(self, part: Partition, kind: str) -> PartitionBank:
        """A suite's own bank, beside that of *part*; closes the one before."""
        from ..bank import Bank
        from ..runtime.assistant import Assistant

        if self.side is not None:
            self.side.close()
        bank = Bank.create(self.options.work / "banks" / f"{part.name}-{kind}", self.model, exist_ok=True)
        self.side = PartitionBank(part, bank, Assistant(bank, model=self.model, threads=self.options.threads))
        return self.side

    def close(self) -> None:
        self.close_desk()
        if self.side is not None:
            self.side.close()
            self.side = None
        self.ledger.close()


def _limited(data: Data, options: EvalOptions) -> Data:
    """*data* cut to what the options ask for."""
    for part in data.partitions.values():
        part.items = part.items[: options.limit]
        if options.questions is not None:
            part.items = [replace(item, questions=item.questions[: options.questions]) for item in part.items]
        ids = {item.id for item in part.items}
        part.composites = [c for c in part.composites if ids.issuperset(c.memories)]
        part.composites = data_module.sample(part.composites, options.composites, options.seed)
    data.choices = data_module.sample(data.choices, options.general, options.seed)
    data.unrelated = data_module.sample(data.unrelated, options.general, options.seed)
    data.conflicts = data_module.sample(data.conflicts, options.limit, options.seed)
    return data
