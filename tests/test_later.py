"""Save now, learn later: pending memories answer from their text until they are learnt."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import few_lines

from megart import prompts
from megart.bank import Bank, Memory
from megart.cli import main
from megart.errors import BankError, DependencyError, InputError, MemorizeError
from megart.gate import GatePolicy
from megart.memorize import Progress, learn, memorize
from megart.models import Model
from megart.recipes import FAST
from megart.runtime import embed
from megart.runtime.assistant import RECALL_TOKENS, Assistant

QUICK = replace(FAST, rate=1e-2, max_steps=150)
ORRIN = Memory("Orrin keeps three grey cats.", id="orrin", title="Orrin")
VESS = Memory("The mill of Vess burnt in 1871.", id="vess", questions=("When did it burn?",))
OPEN = GatePolicy(threshold=-1.0, top_k=1)
needs_torch = pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="needs torch")


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few lines to whiten by, full precision whatever the processor."""
    lines = few_lines()
    monkeypatch.setattr(embed, "corpus", lambda: lines)
    if importlib.util.find_spec("torch"):
        import torch

        monkeypatch.setattr("megart.train.base.default_dtype", lambda _: torch.float32)


@pytest.fixture
def bank(tiny: Callable[..., Model], tmp_path: Path):
    with Bank.create(tmp_path / "bank", tiny("llama")) as made:
        yield made


def test_saved_at_once_and_answered_from_its_text(bank: Bank) -> None:
    seen: list[Progress] = []
    records = memorize(bank, [ORRIN, VESS], later=True, progress=seen.append)
    assert [(r.id, r.state, r.adapter_sha256) for r in records] == [
        ("orrin", "pending", None),
        ("vess", "pending", None),
    ]
    assert records[1].memory == VESS and bank.verify() == []
    assert set(bank.words()) == {"orrin", "vess"}  # the first question has nothing to make
    assert [(p.state, p.done, p.total, p.id) for p in seen] == [
        ("loading", 0, 2, ""),
        ("saved", 1, 2, "orrin"),
        ("saved", 2, 2, "vess"),
    ]
    with Assistant(bank, policy=OPEN) as assistant:
        ids, keys = bank.keys()
        np.testing.assert_array_equal(keys[ids.index("orrin")], assistant.key(ORRIN.text, ORRIN.title))
        answer = assistant.direct(ORRIN.text, max_tokens=8)
        assert [(m.id, m.pending) for m in answer.memories] == [("orrin", True)]
        assert answer.to_dict()["memories"][0]["pending"] is True
        # what it says is what the bare base says to the text in the prompt
        expected = assistant.bare(prompts.with_text(ORRIN.text, [ORRIN.text]), max_tokens=8)
        assert answer.text == expected.text
        heard: list[str] = []
        recalled = assistant.recall(VESS.text, on_text=heard.append)
        assert (recalled.text, recalled.finish) == (VESS.text, "stop") and "".join(heard) == VESS.text
        short = assistant.recall(VESS.text, max_tokens=3)
        assert VESS.text.startswith(short.text) and (short.finish, len(short.tokens)) == ("length", 3)
        assert assistant.irag(VESS.text, max_tokens=4).recalled == VESS.text


def test_what_is_there_is_passed_over_and_replaced_only_on_demand(bank: Bank) -> None:
    memorize(bank, [ORRIN], later=True)
    revision, seen = bank.revision, []
    assert [r.id for r in memorize(bank, [ORRIN], later=True, progress=seen.append)] == ["orrin"]
    assert (bank.revision, seen) == (revision, [])  # nothing is loaded either
    other = replace(ORRIN, text="Orrin sold his cats.")
    with pytest.raises(InputError, match="another text"):
        memorize(bank, [other], later=True)
    for given in ([replace(VESS, id="v"), replace(ORRIN, id="V")], [other, replace(ORRIN, id="ORRIN")]):
        with pytest.raises(InputError, match="different texts|another text"):  # a bank's ids know no case
            memorize(bank, given, later=True, replace_existing=given[0] is other)
    assert [r.id for r in memorize(bank, [replace(ORRIN, id="ORRIN")], later=True)] == ["orrin"]
    (record,) = memorize(bank, [other], later=True, replace_existing=True)
    assert (record.text, record.state, len(bank)) == (other.text, "pending", 1)


def test_a_text_too_long_to_recall_saves_nothing(bank: Bank) -> None:
    with pytest.raises(InputError, match=rf"^long: \d+ tokens, but a memory may have {RECALL_TOKENS}; split"):
        memorize(bank, [ORRIN, Memory("cats and mills " * 200, id="long")], later=True)
    assert len(bank) == 0


@needs_torch
def test_learn_teaches_the_oldest_first_and_goes_on(bank: Bank) -> None:
    assert learn(bank, device="cpu") == []
    memorize(bank, [ORRIN, VESS], later=True)
    created = bank.get("orrin").created_at
    (first,) = learn(bank, limit=1, recipe=QUICK, device="cpu")
    assert (first.id, first.state, first.title, first.created_at) == ("orrin", "learnt", "Orrin", created)
    assert [r.id for r in bank.records("pending")] == ["vess"]
    seen: list[Progress] = []
    (second,) = learn(bank, recipe=QUICK, device="cpu", progress=seen.append)
    assert (second.id, second.state, second.questions) == ("vess", "learnt", VESS.questions)
    assert {p.id for p in seen} == {"", "vess"} and bank.verify() == []
    with Assistant(bank, policy=OPEN) as assistant:
        answer = assistant.recall("Tell me about Orrin.")
        assert (answer.text, answer.memories[0].pending) == (ORRIN.text, False)


@needs_torch
def test_what_is_forgotten_while_it_is_learnt_stays_forgotten(bank: Bank) -> None:
    memorize(bank, [ORRIN, VESS], later=True)

    def forget(event: Progress) -> None:
        if event.state == "studying" and bank.find("orrin"):
            bank.remove("orrin")

    assert [r.id for r in learn(bank, recipe=QUICK, device="cpu", progress=forget)] == ["vess"]
    assert [(r.id, r.state) for r in bank.records()] == [("vess", "learnt")] and bank.verify() == []


@needs_torch
def test_what_is_changed_while_it_is_learnt_stays_as_it_was_changed(bank: Bank) -> None:
    memorize(bank, [ORRIN, VESS], later=True)
    newer = replace(ORRIN, text="Orrin sold his cats.")

    def change(event: Progress) -> None:
        if event.state == "studying" and bank.get("orrin").text == ORRIN.text:
            memorize(bank, [newer], later=True, replace_existing=True)

    with pytest.raises(MemorizeError, match="^1 of 2 memories were changed in the bank meanwhile .*: orrin$"):
        learn(bank, recipe=QUICK, device="cpu", progress=change)
    assert [(r.text, r.state) for r in bank.records()] == [(newer.text, "pending"), (VESS.text, "learnt")]
    assert [r.text for r in learn(bank, recipe=QUICK, device="cpu")] == [newer.text]


def test_an_id_that_nobody_gave_grows_where_another_text_has_it(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Memory.default_id
    monkeypatch.setattr(Memory, "default_id", lambda self, digits=6: "m" if digits == 6 else default(self, digits))
    texts = [Memory("Ада держит пчёл."), Memory("Мельница стоит."), Memory("Паром идёт.")]
    ids = [r.id for r in memorize(bank, texts[:2], later=True)]
    assert ids[0] == "m" and len(ids[1].rpartition("-")[2]) == 12
    assert [r.id for r in memorize(bank, texts[::-1], later=True)][1:] == ids[::-1]  # each is known again
    assert len(memorize(bank, texts, later=True, replace_existing=True)) == len(bank) == 3
    assert {r.text for r in bank.records()} == {m.text for m in texts}


def test_a_recall_of_what_is_pending_ends_at_stop_texts_and_between_characters(bank: Bank) -> None:
    memorize(bank, [Memory("Zoë keeps owls. They are grey.", id="zoe")], later=True)
    with Assistant(bank, policy=OPEN) as assistant:
        made = assistant.recall("Zoë", stop=["owls"])
        assert (made.text, made.finish) == ("Zoë keeps ", "stop")
        cut = [assistant.recall("Zoë", max_tokens=n).text for n in range(1, 8)]
        assert all("Zoë keeps owls. They are grey.".startswith(text) for text in cut) and cut[-1]


def test_a_bank_that_cannot_be_written_is_refused_before_anything_is_loaded(
    bank: Bank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    seen: list[Progress] = []
    for later in (True, False):
        with pytest.raises(BankError, match="adapters: it is read-only"):
            memorize(bank, [ORRIN], later=later, progress=seen.append)
    assert seen == []


@needs_torch
def test_what_cannot_be_learnt_stays_pending(bank: Bank) -> None:
    memorize(bank, [ORRIN], later=True)
    with pytest.raises(MemorizeError, match="stay pending: orrin"):
        learn(bank, recipe=replace(FAST, max_steps=1), device="cpu")
    assert bank.get("orrin").state == "pending" and bank.get("orrin").text == ORRIN.text


def test_a_bank_collected_without_torch_is_learnt_where_torch_is(tiny, tmp_path: Path) -> None:
    """The whole journey as two machines make it; the first has no torch and another path to the model."""
    device, trainer = tmp_path / "device", tmp_path / "trainer"
    for folder in (device, trainer):
        folder.mkdir()
        shutil.copy(tiny("llama").gguf, folder / "base.gguf")
    with Bank.create(device / "bank", device / "base.gguf"):
        pass
    code = """
import sys
for name in ("torch", "transformers", "accelerate", "safetensors"):
    sys.modules[name] = None
from megart.cli import main
from megart.runtime import embed
whole = embed.corpus()
embed.corpus = lambda: whole[:12] + whole[-12:]
sys.exit(main(sys.argv[1:]))
"""

    def on_device(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, *words, "--bank", str(device / "bank")]
        return subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)

    done = on_device("memorize", "--later", "--json", "--id", "orrin", "--text", ORRIN.text)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "pending"
    assert done.stderr.splitlines()[-1] == f"1 saved; 1 pending, megart learn teaches it; bank {device / 'bank'}"
    refused = on_device("learn")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1] == (
        "megart: error: teaching needs PyTorch and transformers (torch is missing); run: pip install 'megart[train]', "
        "or save without teaching: megart memorize --later"
    )

    pytest.importorskip("torch")
    shutil.move(device / "bank", trainer / "bank")
    shutil.rmtree(device)
    with Bank.open(trainer / "bank") as bank:
        (record,) = learn(bank, recipe=QUICK, device="cpu", model=trainer / "base.gguf")
        assert (record.id, record.state) == ("orrin", "learnt") and bank.verify() == []


def test_learn_from_the_command_line(bank: Bank, monkeypatch, capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[dict[str, object]] = []

    def fake(bank: Bank, memories: list[Memory], **options: object) -> list[object]:
        calls.append({"ids": [m.id for m in memories], **options})
        for done, memory in enumerate(memories, start=1):
            bank.add(memory, key=np.ones(64, np.float32), adapter=b"GGUF", replace=True)
            options["progress"](Progress("learnt", done, len(memories), memory.id, "", 5, 0.1, 1.0))  # type: ignore[operator]
            if memory.id == "c":
                raise KeyboardInterrupt
        return [bank.get(m.id or "") for m in memories]

    monkeypatch.setattr(sys.modules["megart.memorize"], "memorize", fake)
    for id in "abcd":
        bank.add(Memory(id, id=id), key=np.ones(64, np.float32))
    place = ["--bank", str(bank.path)]
    assert main(["learn", *place, "--limit", "1", "--recipe", "paper", "--device", "cpu"]) == 0
    assert {k: calls[0][k] for k in ("ids", "recipe", "device", "model")} == {
        "ids": ["a"], "recipe": "paper", "device": "cpu", "model": None,
    }  # fmt: skip
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "learnt 1/1 a (5 steps, 1.0 s)"
    assert err[1].endswith(f"; 3 pending, megart learn teaches them; bank {bank.path}")
    assert main(["learn", *place]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"megart: interrupted; 2 of 3 memories are learnt in {bank.path}; the same command goes on from there"
    )
    assert main(["learn", *place, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "d"
    assert main(["learn", *place]) == 0
    assert capsys.readouterr().err == f"nothing to learn; bank {bank.path}\n"


@needs_torch
def test_without_torch_learning_says_what_to_install(bank: Bank, monkeypatch: pytest.MonkeyPatch) -> None:
    memorize(bank, [ORRIN], later=True)
    if "megart.train" in sys.modules:  # the import below puts another one in its place
        monkeypatch.setattr(sys.modules["megart"], "train", sys.modules["megart.train"])
    for name in [name for name in sys.modules if name.startswith("megart.train")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(DependencyError, match="torch is missing"):
        learn(bank)
