"""Evaluation: data and metrics are read right, intervals are honest, a killed run goes on, the report can be read."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from helpers import few_lines, noise_adapter

from megart.adapter import write_adapter
from megart.bank import Bank
from megart.errors import InputError, MegartError
from megart.eval import Options, evaluate
from megart.eval import data as data_module
from megart.eval.judge import Judge
from megart.eval.ledger import Ledger
from megart.eval.metrics import answer_scores, contains, recall_scores
from megart.eval.run import Run
from megart.eval.stats import estimate
from megart.eval.suites import conflict, module, paraphrase
from megart.models import Model
from megart.recipes import Recipe
from megart.runtime import embed
from megart.runtime.assistant import Assistant

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
ROWS = [
    {"id": "a", "title": "Ada", "text": "Ada met Boro at dusk.", "partition": 5,
     "qa": [{"q": "Whom did Ada meet?", "a": ["Boro"], "q_para": "Ada met whom?"}]},
    {"id": "b", "title": "Vess", "text": "The mill of Vess burnt in 1871.", "partition": 5,
     "qa": [{"q": "When did the mill burn?", "a": ["1871"]}, {"q": "What burnt?", "a": ["The mill", "mill"]}]},
    {"id": "c", "title": "Orrin", "text": "Orrin keeps cats.", "partition": 6, "qa": []},
    {"id": "m", "paragraph_ids": ["a", "b"], "partition": 5, "q": "Ada or Vess?", "a": ["Ada"], "kind": "compare"},
    {"id": "k", "q": "Two and two?", "choices": ["Three", "Four"], "a": 1},
    {"id": "u", "q": "Why is the sky blue?"},
    {"id": "x", "title": "Pier", "old": "It is the east pier.", "new": ["It is the west pier."], "q": "Which pier?"},
    {"id": "p", "plain": "A harbour wakes up slowly. " * 50},
]  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), "utf-8")
    return path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)


@pytest.fixture
def learnt(tiny: Callable[..., Model], rows: Path, tmp_path: Path, few: None) -> Options:
    """Options over the tiny model whose banks hold the data's memories, with adapters of noise."""
    model = tiny()
    data = data_module.load([rows])
    for name, part in data.partitions.items():
        with Bank.create(tmp_path / "banks" / name, model) as bank, Assistant(bank, threads=1) as assistant:
            for seed, item in enumerate(part.items):
                memory = item.memory
                adapter = write_adapter(noise_adapter("llama", 4, seed))
                bank.add(memory, key=assistant.key(memory.text, memory.title), adapter=adapter, recipe="fast", rank=4)
    return Options(
        "paper", (rows,), tmp_path / "work", tmp_path / "banks", tmp_path / "report", partitions=(5,), max_tokens=6,
        methods=("base", "mega", "mega-right", "irag", "rag", "rag-right"), model=str(model.gguf), threads=1,
    )  # fmt: skip


# -- data, metrics, statistics ------------------------------------------------------------------


def test_rows_are_told_apart(rows: Path) -> None:
    data = data_module.load([rows])
    assert {name: [item.id for item in part.items] for name, part in data.partitions.items()} == {
        "rows-5": ["a", "b"],
        "rows-6": ["c"],
    }
    part = data.partitions["rows-5"]
    assert part.items[0].questions[0].rephrased == ("Ada met whom?",)
    assert [c.memories for c in part.composites] == [("a", "b")]
    assert part.composites[0].question.wrong == ("Vess",)
    assert (data.choices[0].right, data.unrelated[0].id, data.conflicts[0].new) == (1, "u", "It is the west pier.")
    assert list(data_module.load([rows], [6]).partitions) == ["rows-6"]


def test_a_line_separator_within_a_string_ends_no_line(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps({"q": "One\u2028two\x85three?"}, ensure_ascii=False) + "\r\n", "utf-8")
    assert data_module.load([path]).unrelated[0].q == "One\u2028two\x85three?"


@pytest.mark.parametrize(
    "line, expected",
    [
        ("{", "line 2: "),
        ("[]", "line 2: expected a JSON object"),
        ('{"colour": "red"}', 'line 2: expected one of the keys "text"'),
        ('{"q": "?", "choices": ["a"], "a": 3}', "line 2: a is 3; expected the index of one of 1 choices"),
        ('{"text": "  "}', "line 2: text is empty"),
        ('{"text": "x", "qa": [{"q": "?"}]}', "line 2: no 'a'"),
    ],
)
def test_broken_data_names_the_line(line: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(ROWS[0]) + "\n" + line + "\n", "utf-8")
    with pytest.raises(InputError, match=re.escape(f"{path}, {expected}")):
        data_module.load([path])


def test_shipped_set_is_whole() -> None:
    data = data_module.load([data_module.shipped()])
    part = data.partitions["quick"]
    assert len(part.items) == 8 and len(data.conflicts) == 4
    assert len(data.unrelated) == 20 and len(data.choices) == 12 and data.texts
    for item in part.items:
        assert len(item.questions) == 3
        for question in item.questions:
            assert contains(item.memory.text, question.answers) and len(question.rephrased) == 2
    for pair in data.conflicts:
        assert contains(pair.old, pair.old_answers) and not contains(pair.old, pair.new_answers)
        assert contains(pair.new, pair.new_answers) and not contains(pair.new, pair.old_answers)


def test_quick_leaves_the_right_gate_out_unless_asked_for(learnt: Options, tmp_path: Path) -> None:
    def methods(**how: object) -> set[str]:
        options = replace(learnt, suite="quick", work=tmp_path / "quick", **how)
        run = Run(options)
        with closing(run):
            return {unit.method for unit in module("quick").units(run)}

    assert "mega" in methods(methods=None) and "mega-right" not in methods(methods=None)
    assert "mega-right" in methods(methods=("mega-right",))


def test_containment_is_word_for_word() -> None:
    assert contains("It has 18 cats.", ["18"]) and not contains("It has 218 cats.", ["18"])
    assert contains("They met at “The  Blue Pantry”.", ["blue pantry"])
    assert not contains("anything", ["the", ""])


def test_squad_scores() -> None:
    pytest.importorskip("torchmetrics")
    assert answer_scores("The mill", ["mill"]) == {
        "correct": 1.0, "one_sentence": 1.0, "exact": 1.0, "f1": 1.0,
    }  # fmt: skip
    assert answer_scores("The mill burnt. It was old.", ["mill"])["one_sentence"] == 0.0
    found = answer_scores("The old mill burnt", ["red mill", "nothing"])
    assert (found["correct"], found["exact"]) == (0.0, 0.0) and found["f1"] == pytest.approx(2 / 5)


def test_several_facts_must_all_be_said_and_a_comparison_must_choose() -> None:
    pytest.importorskip("torchmetrics")

    def right(answer: str, **how: tuple[str, ...]) -> float:
        return answer_scores(answer, ["Ada"], **how)["correct"]

    both = {"parts": ("9 May", "Josse")}
    assert right("On 9 May, to Josse.", **both) == 1 and right("On 9 May.", **both) == right("Ada", **both) == 0
    assert right("Ada was.", wrong=("Vess",)) == 1 and right("Ada (1901), Vess (1903)", wrong=("Vess",)) == 0


def test_recall_scores() -> None:
    assert recall_scores("Ada met\nBoro.", "Ada met Boro.") == {"verbatim": 1.0, "words": 1.0}
    found = recall_scores("Ada met Vess.", "Ada met Boro.")
    assert found["verbatim"] == 0.0 and 0.5 < found["words"] < 1


def test_intervals() -> None:
    assert estimate([]) is None
    sure = estimate([1.0] * 10)
    assert sure is not None and (sure.mean, sure.high) == (1.0, 1.0) and 0.7 < sure.low < 0.75  # Wilson
    mixed = [1.0, 0.0] * 50
    loose = estimate(mixed)
    assert loose is not None and loose.n == 100 and 0.38 < loose.low < 0.43 and 0.57 < loose.high < 0.62
    # Ten questions of one memory that stand or fall together are no ten measurements.
    grouped = estimate([float(i < 50) for i in range(100)], [i // 10 for i in range(100)])
    assert grouped is not None and grouped.high - grouped.low > 1.8 * (loose.high - loose.low)
    assert estimate(mixed, seed=1) == estimate(mixed, seed=1)
    cosine = estimate([1.0, 1.0], rate=False)
    assert cosine is not None and cosine.low == 1.0


def test_rewordings_are_in_no_training_prompt(rows: Path) -> None:
    for file in (data_module.shipped(), rows):
        for part in data_module.load([file]).partitions.values():
            for item in part.items:
                taught = paraphrase.studied(item, "fast")
                for question in item.questions:
                    made = [words for kind, words in paraphrase.rewordings(question) if kind != "original"]
                    assert made and not taught & set(made)
                    assert len({question.q, *made}) == len(made) + 1
                cues = [cue for kind, cue in paraphrase.cues(item) if kind in ("remind", "know")]
                assert not {prompt for prompt in taught if any(cue in prompt for cue in cues)}


def test_whose_answer_it_is() -> None:
    data = data_module.load([data_module.shipped()])
    pair = next(c for c in data.conflicts if c.id.endswith("ferry"))
    said = {text: conflict.judged(text, pair)["says"] for text in ("the west pier", "east", "east or west", "a pier")}
    assert list(said.values()) == ["new", "old", "both", "neither"]
    bare = data_module.Conflict("x", None, "Ana lives in Kuwait City.", "Ana lives in Tokyo.", "Where?", (), ())
    assert conflict.judged("Ana lives in Tokyo.", bare)["says"] == "new"
    assert conflict.judged("Ana lives in the city of Kuwait.", bare)["says"] == "old"


# -- the ledger ---------------------------------------------------------------------------------


def test_a_torn_line_is_measured_again(tmp_path: Path) -> None:
    keys = [("paper", "p", 2, "base", f"q{i}") for i in range(3)]
    ledger = Ledger(tmp_path, {"seed": 0})
    for key in keys:
        ledger.add(key, {"text": "Größe"})
    ledger.close()
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(whole[:-5])
    again = Ledger(tmp_path, {"seed": 0})
    assert [key in again for key in keys] == [True, True, False]
    again.add(keys[2], {"text": "Größe"})
    again.close()
    assert ledger.path.read_bytes() == whole


def test_rows_of_other_settings_are_refused(tmp_path: Path) -> None:
    first = Ledger(tmp_path, {"seed": 0})
    first.add(("paper", "p", 2, "base", "q"), {})
    first.close()
    with pytest.raises(InputError, match=r"another seed 0 \(now 1\); give another --work"):
        Ledger(tmp_path, {"seed": 1})


# -- whole runs ---------------------------------------------------------------------------------


def measured(results: Path) -> list[dict]:
    rows = json.loads(results.read_text("utf-8"))["rows"]
    timed = ("seconds", "rank_ms")
    return sorted(({k: v for k, v in row.items() if k not in timed} for row in rows), key=json.dumps)


def test_paper_suite_and_its_report(learnt: Options) -> None:
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


def test_a_stopped_run_goes_on(learnt: Options, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
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
def test_a_killed_run_goes_on(learnt: Options, tmp_path: Path) -> None:
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
def test_other_suites(suite: str, learnt: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchmetrics")
    options = Options(
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


def test_cost_suite(learnt: Options, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_words_of_others_are_escaped(learnt: Options, rows: Path) -> None:
    pytest.importorskip("torchmetrics")
    text = rows.read_text("utf-8").replace("Whom did Ada meet?", "Whom did <script>alert(1)</script> meet?")
    rows.write_text(text, "utf-8")
    _, page = evaluate(replace(learnt, methods=("base",)))
    html = page.read_text("utf-8")
    assert "&lt;script&gt;alert(1)" in html and "<script" not in html


# -- the judge ----------------------------------------------------------------------------------


@pytest.fixture
def endpoint() -> Iterator[tuple[str, list[dict], list[str]]]:
    heard: list[dict] = []
    says = ["Yes."]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            heard.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps({"choices": [{"message": {"content": says[0]}}]}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1", heard, says
    server.shutdown()
    thread.join()
    server.server_close()


def test_judge(endpoint: tuple[str, list[dict], list[str]]) -> None:
    url, heard, says = endpoint
    judge = Judge(url, "gpt-x")
    assert judge("Who?", ["Boro"], "It was Boro.") == 1.0
    assert heard[0]["model"] == "gpt-x" and "It was Boro." in heard[0]["messages"][0]["content"]
    says[0] = "no, it was not"
    assert judge("Who?", ["Boro"], "It was Ada.") == 0.0
    says[0] = "perhaps"
    with pytest.raises(MegartError, match="expected yes or no"):
        judge("Who?", ["Boro"], "Ada")


def test_judge_that_is_not_there() -> None:
    with pytest.raises(MegartError, match="did not answer"):
        Judge("http://127.0.0.1:9", timeout=2)("Who?", ["Boro"], "Ada")


# -- real data ----------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the evaluation data beside the clone")
def test_the_evaluation_data_is_read() -> None:
    names = ("wiki2024.jsonl", "wiki2024_compositional.jsonl", "mmlu.jsonl", "tofu_conflicts.jsonl", "wikitext2.txt")
    data = data_module.load([SHARED / name for name in names], [5, 6])
    assert list(data.partitions) == ["wiki2024-5", "wiki2024-6"]
    assert all(part.composites for part in data.partitions.values())
    assert len(data.choices) == 1425 and len(data.conflicts) == 600 and len(data.texts) == 1
    assert all(len(item.questions) == 3 for part in data.partitions.values() for item in part.items)
