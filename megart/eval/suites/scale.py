"""Gate, opening time, memory and disk against the number of memories.

The memories that are asked about are learnt; distractors have real keys of real texts and a tiny synthetic
adapter. How many are of which kind stands in every row.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from statistics import median

from ... import sentences
from ...runtime import score
from ...runtime.assistant import Assistant
from .. import growing
from ..data import Question, sample
from ..ledger import Row
from ..plots import lines
from ..run import PartitionBank, Run, Unit
from ..stats import estimate
from ..tables import Section, Table, show

REAL = 100  # memories with an adapter of their own, where the data has as many
ASKED = 300  # questions at most
TIMED = 20  # answers that are timed


def units(run: Run) -> list[Unit]:
    name = next(iter(run.data.partitions))
    state = _Scale(run, name)
    return [
        Unit(name, count, "scale", f"N={count}", "scale", partial(state.measure, count), many=True)
        for count in sorted(run.options.counts)
    ]


class _Scale:
    """One bank that grows from count to count. The first REAL memories of all partitions are learnt."""

    def __init__(self, run: Run, name: str):
        self.run = run
        self.name = name
        self.items = [item for part in run.data.partitions.values() for item in part.items]
        self.real = [item for item in self.items if item.questions][: run.options.limit or REAL]
        ids = {item.id for item in self.real}
        for part in run.data.partitions.values():  # nobody else needs to be taught
            part.items = [item for item in part.items if item.id in ids]
        self._taught: PartitionBank | None = None

    def taught(self) -> PartitionBank:
        if self._taught is None:
            self._taught = self.run.open_side(self.run.data.partitions[self.name], "scale")
        return self._taught

    def strangers(self) -> Iterator[tuple[str, str | None]]:
        """Texts that nobody is asked about, each once: further memories, then plain text, then whatever else there is."""
        seen = {item.memory.text for item in self.real}
        for text, title in self._texts():
            if text not in seen:
                seen.add(text)
                yield text, title

    def _texts(self) -> Iterator[tuple[str, str | None]]:
        real = {item.id for item in self.real}
        others = [item for item in self.items if item.id not in real]
        yield from ((item.memory.text, item.memory.title) for item in others)
        for _, text in self.run.data.texts:
            paragraphs = [paragraph.split() for paragraph in text.split("\n")]
            yield from ((" ".join(words[:60]), None) for words in paragraphs if len(words) >= 30)
            cut = [sentence.split() for sentence in sentences.split(text)]
            yield from ((" ".join(words), None) for words in cut if 8 <= len(words) <= 60)
        yield from ((text, item.memory.title) for item in others for text in item.memory.paraphrases)
        yield from ((text, pair.title) for pair in self.run.data.conflicts for text in (pair.old, pair.new))
        yield from ((question.q, None) for item in others for question in item.questions)

    def grow(self, count: int) -> tuple[int, int]:
        """Bring the bank to *count* memories: (learnt ones, synthetic ones)."""
        taught = self.taught()
        learnt = 0
        for part in self.run.data.partitions.values():
            wanted = [item.id for item in self.real[:count] if item in part.items]
            if any(taught.bank.find(id) is None for id in wanted):
                source = self.run.taught(part.name)
                for id in wanted:
                    if source.bank.find(id) is not None:
                        growing.copy_memory(source, taught.bank, id)
            learnt += sum(taught.bank.find(id) is not None for id in wanted)
        self.run.close_desk()
        room = count - learnt
        if room > 0:
            like = taught.bank.adapter(self.real[0].id)
            adapter = growing.noise_like(like, 1, targets=1, size=1e-4)
            activated = bool(like.invocation_tokens)
            texts = self.strangers()
            growing.add_strangers(taught, (t for t, _ in zip(texts, range(room), strict=False)), adapter, activated, 0)
        return learnt, len(taught.bank) - learnt

    def measure(self, count: int) -> dict[tuple[str, str], Row]:
        learnt, synthetic = self.grow(count)
        taught = self.taught()
        assistant = taught.assistant
        asked = [q for item in self.real[:count] if taught.bank.find(item.id) for q in item.questions]
        asked = sample(asked, ASKED, self.run.options.seed)
        strangers = [*self.run.data.unrelated, *(Question(c.id, c.q) for c in self.run.data.choices)]
        rows: dict[tuple[str, str], Row] = {}
        for question in asked:
            started = time.perf_counter()
            ranking = score.rank(assistant, question.q)
            # Only candidates are ranked: a memory that is none comes after all of them.
            rank = (ranking.ids.index(question.memory) if question.memory in ranking.ids else len(ranking.ids)) + 1
            rows["gate", f"{count}/{question.id}"] = {
                "memory": question.memory, "rank": rank, "top1": float(rank == 1), "top5": float(rank <= 5),
                "true_open": float(question.memory in ranking.opened), "nothing": float(not ranking.opened),
                "rank_ms": (time.perf_counter() - started) * 1e3, "n": len(taught.bank),
            }  # fmt: skip
        for question in strangers:
            opened = score.rank(assistant, question.q).opened
            rows["unrelated", f"{count}/{question.id}"] = {"false_open": float(bool(opened)), "n": len(taught.bank)}
        timings = [assistant.ask(q.q, max_tokens=1).timings for q in asked[:TIMED]]
        started = time.perf_counter()
        with Assistant(taught.bank, model=self.run.model, threads=self.run.options.threads) as second:
            second.ask(asked[0].q if asked else "?", max_tokens=1)
            cold = time.perf_counter() - started
        rows["machine", str(count)] = {
            "n": len(taught.bank), "learnt": learnt, "synthetic": synthetic, "gate_ms": _median(t.gate_ms for t in timings),
            "open_ms": _median(t.mix_ms + t.install_ms for t in timings),
            "first_token_ms": _median(t.first_token_ms for t in timings), "timed": len(timings), "first_answer_s": cold,
            "resident_bytes": growing.resident_bytes(), "disk_bytes": growing.folder_bytes(taught.bank.path),
            "real_adapter_bytes": _median(r.adapter_bytes for r in taught.bank.records("learnt") if r.recipe != "synthetic"),
        }  # fmt: skip
        return rows


def _median(values) -> float | None:  # type: ignore[no-untyped-def]
    numbers = list(values)
    return round(median(numbers), 4) if numbers else None


def sections(rows: list[Row], run: Run) -> list[Section]:
    machine = sorted((r for r in rows if r["method"] == "machine"), key=lambda r: r["n"])
    seed = run.options.seed
    lines_, values = [], {}
    curves: dict[str, list[tuple[int, float]]] = {"right memory first": [], "right one opens": [], "false opens": []}
    for row in machine:
        stage = row["stage"]
        gates = [r for r in rows if r["method"] == "gate" and r["stage"] == stage]
        wrong = [r for r in rows if r["method"] == "unrelated" and r["stage"] == stage]
        groups = [r["memory"] for r in gates]
        estimates = {f: estimate([r[f] for r in gates], groups, seed) for f in ("top1", "top5", "true_open")}
        estimates["false_open"] = estimate([r["false_open"] for r in wrong], None, seed)
        lines_.append([str(row["n"]), f"{row['learnt']} / {row['synthetic']}", *(show(e) for e in estimates.values())])
        for name, field in zip(curves, ("top1", "true_open", "false_open"), strict=True):
            if one := estimates[field]:
                curves[name].append((row["n"], one.mean))
        values[str(row["n"])] = {**{f: e.to_dict() for f, e in estimates.items() if e}, **_plain(row)}
    heads = [
        "memories",
        "learnt / synthetic",
        "right memory first",
        "among first five",
        "right one opens",
        "false opens",
    ]
    gate = Section(
        "The gate", "Every key is the key of a real text. Distractors have a synthetic adapter.", [Table(heads, lines_)],
        [lines(curves, "memories in the bank", "share", log_x=True, percent=True)], {"scale": values},
    )  # fmt: skip
    shown = [
        [str(r["n"]), _ms(r["gate_ms"]), _ms(r["open_ms"]), _ms(r["first_token_ms"]), f"{r['first_answer_s']:.2f} s",
         _mb(r["resident_bytes"]), _mb(r["disk_bytes"]), _mb((r["real_adapter_bytes"] or 0) * r["n"])]
        for r in machine
    ]  # fmt: skip
    heads = ["memories", "gate", "open (mix and install)", "first token", "first answer of a new Assistant", "resident",
             "disk", "disk, were all adapters real"]  # fmt: skip
    note = f"Medians of up to {TIMED} answers. Resident: the whole process, with model, contexts and evaluation."
    times = lines(
        {"gate": [(r["n"], r["gate_ms"]) for r in machine if r["gate_ms"]],
         "open": [(r["n"], r["open_ms"]) for r in machine if r["open_ms"]]},
        "memories in the bank", "ms", log_x=True, log_y=True,
    )  # fmt: skip
    return [gate, Section("Time and room", "", [Table(heads, shown, note=note)], [times])]


def _plain(row: Row) -> dict:
    names = (
        "learnt",
        "synthetic",
        "gate_ms",
        "open_ms",
        "first_token_ms",
        "first_answer_s",
        "resident_bytes",
        "disk_bytes",
    )
    return {name: row[name] for name in names}


def _ms(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} ms"


def _mb(value: float | None) -> str:
    return "–" if not value else f"{value / 1e6:.1f} MB"
