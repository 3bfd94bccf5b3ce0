"""Data and metrics are read right, intervals are honest, the ledger forgets nothing, the judge judges."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from megart.errors import InputError, MegartError
from megart.eval import EvalOptions
from megart.eval import data as data_module
from megart.eval.judge import Judge
from megart.eval.ledger import Ledger
from megart.eval.metrics import answer_scores, contains, recall_scores
from megart.eval.run import Run
from megart.eval.stats import estimate
from megart.eval.suites import conflict, module, paraphrase

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


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
def test_broken_data_names_the_line(line: str, expected: str, rows: Path, tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text(rows.read_text("utf-8").split("\n")[0] + "\n" + line + "\n", "utf-8")
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


def test_quick_leaves_the_right_gate_out_unless_asked_for(learnt: EvalOptions, tmp_path: Path) -> None:
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
    for answer, gold in (("4–10 March", "4-10 March"), ("4-10 March", "4–10 March"), ("Nana’s", "Nana's")):
        assert answer_scores(answer, [gold])["exact"] == 1.0


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
    bare = data_module.Contradiction("x", None, "Ana lives in Kuwait City.", "Ana lives in Tokyo.", "Where?", (), ())
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
