"""Whole runs of the suites: a killed one goes on, the report can be read."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from helpers import noise_adapter

from megart.adapter import write_adapter
from megart.bank import Bank
from megart.eval import EvalOptions, evaluate
from megart.eval import data as data_module
from megart.eval.ledger import Ledger
from megart.eval.run import Run
from megart.eval.suites import module, paraphrase
from megart.recipes import Recipe
from megart.runtime.assistant import Assistant


def measured(results: Path) -> list[dict]:
    rows = json.loads(results.read_text("utf-8"))["rows"]
    timed = ("seconds", "rank_ms")
    return sorted(({k: v for k, v in row.items() if k not in timed} for row in rows), key=json.dumps)


def test_paper_suite_and_its_report(learnt: EvalOptions) -> None:
    pytest.importorskip("torchmetrics")
    ticks = []
    results, page = evaluate(learnt, ticks.append)
    found = json.loads(results.read_text("utf-8"))
    assert found["suite"] == "paper" and found["seeds"] == {"sampling_and_bootstrap": 0}
    assert found["base"]["sha256"] and found["versions"]["llama-cpp-python"] and "git_commit" in found
    by_method = {}
    for row in found["rows"]:
        if "correct" in row and row["memory"]:
            by_method.setdefault(row["method"], []).append(row)
    assert {m: len(r) for m, r in by_method.items()} == dict.fromkeys(learnt.methods or (), 3)
    for row in by_method["rag-right"]:
        assert row["logprob"] < 0 and row["answers"] and isinstance(row["text"], str)
    values = found["sections"][0]["values"]["methods"]["base"]["QA, contained"]
    assert values["n"] == 3 and 0 <= values["low"] <= values["mean"] <= values["high"] <= 1
    done = [t.done for t in ticks]
    assert done == sorted(done) and ticks[-1].done == ticks[-1].total and ticks[-1].seconds_left == 0
    html = page.read_text("utf-8")
    assert "<svg" in html and "MEGa, right gate given" in html and "n=3" in html
    # Self-contained: nothing is fetched, nothing runs.
    assert not re.search(r"<(script|link|img|iframe)|src=|@import|url\((?!#)", html)


def test_a_stopped_run_goes_on(learnt: EvalOptions, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    whole, _ = evaluate(replace(learnt, work=tmp_path / "other", report=tmp_path / "r"))
    add = Ledger.add
    written = []

    def stop(self: Ledger, key: tuple, row: dict) -> None:
        if len(written) == 7:
            raise KeyboardInterrupt
        written.append(key)
        add(self, key, row)

    monkeypatch.setattr(Ledger, "add", stop)
    with pytest.raises(KeyboardInterrupt):
        evaluate(learnt)
    later = []

    def count(self: Ledger, key: tuple, row: dict) -> None:
        later.append(key)
        add(self, key, row)

    monkeypatch.setattr(Ledger, "add", count)
    results, _ = evaluate(learnt)
    assert len(written) == 7 and later and not set(written) & set(later)
    assert measured(results) == measured(whole)
    later.clear()
    results, _ = evaluate(learnt)
    assert later == [] and measured(results) == measured(whole)
    # A smaller run in the same folder reports its own rows only.
    fewer = replace(learnt, methods=("base",))
    found = json.loads(evaluate(fewer)[0].read_text("utf-8"))
    assert later == [] and {row["method"] for row in found["rows"]} == {"base", "learnt"}


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_run_goes_on(learnt: EvalOptions, tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    words = ["eval", "unrelated", "--data", str(learnt.files[0]), "--work", str(learnt.work), "--bank", str(learnt.bank),
             "--partitions", "5", "--model", str(learnt.model), "--max-tokens", "6", "--threads", "1"]  # fmt: skip
    rows = learnt.work / "rows.jsonl"
    with subprocess.Popen([sys.executable, "-m", "megart", *words], stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            if rows.is_file() and rows.read_bytes().count(b"\n") >= 2:
                break
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    before = rows.read_text("utf-8").splitlines()
    options = replace(learnt, suite="unrelated", methods=None)
    results, _ = evaluate(options)
    after = rows.read_text("utf-8").splitlines()
    assert len(before) >= 2 and after[: len(before) - 1] == before[:-1]
    keys = [(row["method"], row["item"]) for row in measured(results)]
    assert len(keys) == len(set(keys)) == len(after)


@pytest.mark.parametrize("suite", ["forgetting", "paraphrase", "conflict", "scale", "quick"])
def test_other_suites(suite: str, learnt: EvalOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    options = EvalOptions(
        **{**vars(learnt), "suite": suite, "methods": ("base", "mega"), "counts": (2, 4), "bank": learnt.bank}
    )
    if suite in ("conflict", "quick"):  # teach nothing: noise will do

        def learn(self: Run, bank: Bank, part: data_module.Partition) -> list[str]:
            with Assistant(bank, threads=1) as assistant:
                for seed, item in enumerate(part.items):
                    if bank.find(item.id) is None:
                        key = assistant.key(item.memory.text)
                        bank.add(item.memory, key=key, adapter=write_adapter(noise_adapter("llama", 4, seed)), rank=4)
            return []

        monkeypatch.setattr(Run, "learn", learn)
    results, page = evaluate(options)
    found = json.loads(results.read_text("utf-8"))
    assert any(table["rows"] for section in found["sections"] for table in section["tables"])
    assert "<table" in page.read_text("utf-8")
    if suite == "forgetting":
        assert {row["stage"] for row in found["rows"] if row["method"] == "mega"} == {1, 2}
    if suite == "quick":  # the plain wording is asked once, and stands beside the others
        asked = [
            row
            for row in found["rows"]
            if row["method"] == "mega" and row["partition"] not in ("conflict-both", "conflict-replaced")
        ]
        assert asked and not any("/original" in row["item"] for row in asked)
        (reworded,) = [s for s in found["sections"] if s["title"].startswith("Reworded. Answers: MEGa")]
        assert paraphrase.KINDS["original"] in [row[0] for row in reworded["tables"][0]["rows"]]
    if suite == "scale":
        machine = {row["n"]: row for row in found["rows"] if row["method"] == "machine"}
        # Strangers: a plain text and both sides of a contradiction.
        assert {n: (row["learnt"], row["synthetic"]) for n, row in machine.items()} == {2: (2, 0), 4: (2, 2)}
        assert all(row["disk_bytes"] > 0 for row in machine.values())


def test_cost_suite(learnt: EvalOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    from megart.eval.suites import cost

    def teach(bank: Bank, memories: list, *, recipe: Recipe, **_: object) -> None:
        with Assistant(bank, threads=1) as assistant:
            for memory in memories:
                adapter = write_adapter(noise_adapter("llama", recipe.rank, 0))
                bank.add(memory, key=assistant.key(memory.text), adapter=adapter, rank=recipe.rank)

    monkeypatch.setattr(cost, "memorize", teach)
    monkeypatch.setattr(cost, "RANKS", (4, 16))
    monkeypatch.setattr(cost.metrics, "sentence_embedder", lambda: None)
    results, page = evaluate(replace(learnt, suite="cost"))
    rows = {(row["method"], row["item"]): row for row in json.loads(results.read_text("utf-8"))["rows"]}
    assert rows["teach", "rank 16"]["bytes"] > rows["teach", "rank 4"]["bytes"] > 0
    # Two memories in the bank: of four that may open, two can.
    opened = {item: row["opened"] for (method, item), row in rows.items() if method == "mega"}
    assert opened == {f"rank {r}, k {k}": min(k, 2) for r in (4, 16) for k in (1, 2, 4)}
    assert all(rows["mega", item]["first_token_ms"] > 0 for item in opened)
    assert rows["rag", "gate"]["look_up_ms"] > 0 and "missing" in rows["rag", "minilm"]
    assert "tokens a second" in page.read_text("utf-8")


def test_every_suite_has_its_parts() -> None:
    from megart.eval.suites import SUITES

    for name in SUITES:
        assert callable(module(name).units) and callable(module(name).sections)


def test_words_of_others_are_escaped(learnt: EvalOptions, rows: Path) -> None:
    pytest.importorskip("torchmetrics")
    text = rows.read_text("utf-8").replace("Whom did Ada meet?", "Whom did <script>alert(1)</script> meet?")
    rows.write_text(text, "utf-8")
    _, page = evaluate(replace(learnt, methods=("base",)))
    html = page.read_text("utf-8")
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html
