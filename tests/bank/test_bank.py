"""The bank: what it stores, replaces and forgets."""

import errno
import hashlib
import os
import time
from pathlib import Path

import numpy as np
import pytest
from notes import NOTE, D, files, key

from megart.bank import Bank, Memory, catalog
from megart.errors import (
    BankError,
    BaseMismatchError,
    InputError,
    MemoryNotFoundError,
    ModelError,
)


def test_a_memory_comes_back_as_it_was_given(bank: Bank) -> None:
    made = bank.add(
        NOTE,
        key=key(),
        adapter=b"GGUF one",
        recipe="fast",
        activated=True,
        rank=16,
        training={"steps": 13, "loss": 0.5},
    )
    assert made == bank.get("ada") == bank.find("ada") == bank.records()[0]
    assert made.memory == NOTE
    assert (made.state, made.recipe, made.activated, made.rank) == ("learnt", "fast", True, 16)
    assert made.training == {"steps": 13, "loss": 0.5}
    assert made.adapter_bytes == 8
    assert made.adapter_sha256 == hashlib.sha256(b"GGUF one").hexdigest()
    assert made.created_at == made.learnt_at and made.created_at.endswith("Z")
    assert bank.adapter_path("ada") == bank.path / "adapters" / "ada.gguf"
    assert files(bank) == {"ada.gguf": b"GGUF one"}
    assert bank.verify() == []


def test_it_outlives_the_process(bank: Bank, model: Path) -> None:
    made = bank.add(NOTE, key=key(), adapter=b"x")
    bank.set_state("centre", b"\x00\xff")
    with Bank.open(bank.path, model) as again:
        assert again.records() == [made]
        assert again.get_state("centre") == b"\x00\xff"
        assert again.get_state("other") is None
        ids, keys = again.keys()
        assert ids == ["ada"] and np.array_equal(keys[0], key())
        assert again.base == bank.base
        assert again.model.gguf == model.resolve()


def test_a_memory_without_adapter_is_pending(bank: Bank) -> None:
    made = bank.add(Memory("Bo sails."), key=key(1))
    assert (made.state, made.adapter_sha256, made.learnt_at) == ("pending", None, None)
    assert made.id.startswith("bo-sails-")
    with pytest.raises(BankError, match="is pending"):
        bank.adapter_path(made.id)
    learnt = bank.add(NOTE, key=key(), adapter=b"x")
    assert bank.records("pending") == [made] and bank.records("learnt") == [learnt]
    assert bank.keys()[0] == [made.id, "ada"] and len(bank) == 2
    with pytest.raises(InputError, match="state"):
        bank.records("gone")


def test_an_id_is_taken_once(bank: Bank) -> None:
    bank.add(NOTE, key=key(), adapter=b"x")
    with pytest.raises(InputError, match="'ada' is already there;"):
        bank.add(NOTE, key=key())
    with pytest.raises(InputError, match="already there with another text"):
        bank.add(Memory("Other.", id="ADA"), key=key())
    assert files(bank) == {"ada.gguf": b"x"} and len(bank) == 1


def test_replacing_keeps_place_and_date(bank: Bank) -> None:
    first = bank.add(NOTE, key=key(), adapter=b"one")
    bank.add(Memory("Bo sails.", id="bo"), key=key(1))
    mapped = (bank.path / "adapters" / "ada.gguf").open("rb")
    second = bank.add(Memory("New.", id="ADA"), key=key(2), adapter=b"two two", replace=True)
    with mapped:
        assert mapped.read() == b"one"
    assert (second.id, second.created_at, second.text) == ("ada", first.created_at, "New.")
    assert bank.keys()[0] == ["ada", "bo"] and np.array_equal(bank.keys()[1][0], key(2))
    assert files(bank) == {"ada.gguf": b"two two"} and bank.verify() == []
    third = bank.add(Memory("Newer.", id="ada"), key=key(3), replace=True)
    assert third.state == "pending" and files(bank) == {}
    bank.add(Memory("Newest.", id="ada"), key=key(3), adapter=b"four", replace=True)
    assert files(bank) == {"ada.gguf": b"four"}


def test_without_hard_links_a_replacement_keeps_its_second_name(bank, monkeypatch) -> None:
    def no_links(*args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    bank.add(NOTE, key=key(), adapter=b"one")
    with monkeypatch.context() as patch:
        patch.setattr(os, "link", no_links)
        bank.add(NOTE, key=key(), adapter=b"two", replace=True)
        assert list(files(bank).values()) == [b"two"] and "ada.gguf" not in files(bank)
        assert bank.adapter_path("ada").read_bytes() == b"two" and bank.verify() == []
    bank.add(NOTE, key=key(), adapter=b"three", replace=True)
    assert files(bank) == {"ada.gguf": b"three"}


def test_forgetting_leaves_nothing(bank: Bank) -> None:
    made = bank.add(NOTE, key=key(), adapter=b"x")
    assert bank.remove("ada") == made
    assert len(bank) == 0 and files(bank) == {} and bank.keys()[1].shape == (0, 0)
    with pytest.raises(MemoryNotFoundError):
        bank.remove("ada")


def test_an_unknown_id_names_the_nearest(bank: Bank) -> None:
    bank.add(NOTE, key=key())
    with pytest.raises(MemoryNotFoundError, match="did you mean ada"):
        bank.get("adah")
    with pytest.raises(MemoryNotFoundError, match="megart list"):
        bank.adapter_path("../../etc/passwd")
    assert bank.find("\ud800") is None


@pytest.mark.parametrize(
    "wrong",
    [
        key().astype(np.float64),
        key().reshape(1, -1),
        np.array([np.nan] * D, np.float32),
        np.empty(0, np.float32),
        [1.0] * D,
        key(size=D + 1),
    ],
)
def test_a_wrong_key_is_refused(bank: Bank, wrong: object) -> None:
    bank.add(NOTE, key=key())
    with pytest.raises(InputError, match="context key"):
        bank.add(Memory("Bo sails."), key=wrong, adapter=b"x")  # type: ignore[arg-type]
    assert len(bank) == 1 and files(bank) == {}


def test_a_lone_memory_may_get_a_key_of_another_length(bank: Bank) -> None:
    bank.add(NOTE, key=key())
    bank.add(NOTE, key=key(size=5), replace=True)
    assert bank.keys()[1].shape == (1, 5)


def test_wrong_arguments_are_refused(bank: Bank) -> None:
    with pytest.raises(InputError, match="adapter is empty"):
        bank.add(NOTE, key=key(), adapter=b"")
    with pytest.raises(InputError, match="rank"):
        bank.add(NOTE, key=key(), rank=-1)
    with pytest.raises(InputError, match="training"):
        bank.add(NOTE, key=key(), training={"loss": float("nan")})


def test_the_revision_grows_with_every_change_of_any_connection(bank: Bank) -> None:
    seen = [bank.revision]
    with Bank.open(bank.path) as other:
        for change in (
            lambda: other.add(NOTE, key=key()),
            lambda: bank.add(Memory("Bo sails.", id="bo"), key=key()),
            lambda: other.set_state("a", b"b"),
            lambda: other.remove("bo"),
        ):
            change()
            assert bank.revision == other.revision
            seen.append(bank.revision)
        bank.records(), bank.keys(), bank.verify()
        assert bank.revision == seen[-1]
    assert seen == sorted(set(seen))


def test_another_base_is_refused(bank: Bank, tmp_path: Path) -> None:
    other = tmp_path / "other.gguf"
    other.write_bytes(b"GGUF other")
    with pytest.raises(BaseMismatchError, match="belongs to base .* got other"):
        Bank.open(bank.path, other)
    with pytest.raises(BaseMismatchError):
        Bank.create(bank.path, other, exist_ok=True)


def test_create_makes_a_bank_once(bank: Bank, model: Path, tmp_path: Path) -> None:
    bank.add(NOTE, key=key())
    with pytest.raises(BankError, match="already"):
        Bank.create(bank.path, model)
    with Bank.create(bank.path, model, exist_ok=True) as same:
        assert len(same) == 1
    with pytest.raises(BankError, match="holds 'bank' and is no bank"):
        Bank.create(tmp_path, model)
    with pytest.raises(ModelError):
        Bank.create(tmp_path / "new", tmp_path / "no.gguf")
    assert not (tmp_path / "new").exists()


def test_an_interrupted_create_can_be_done_again(tmp_path: Path, model: Path, monkeypatch) -> None:
    def stop(self: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(catalog.Catalog, "commit", stop)
        with pytest.raises(KeyboardInterrupt):
            Bank.create(tmp_path / "b", model)
    with pytest.raises(BankError, match="run: megart init --bank"):
        Bank.open(tmp_path / "b")
    Bank.create(tmp_path / "b", model).close()


def test_a_closed_bank_says_so(bank: Bank) -> None:
    bank.close()
    bank.close()
    with pytest.raises(BankError, match="closed"):
        len(bank)


def test_the_path_is_absolute(model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with Bank.create("my bank #1 %41?", model) as bank:
        bank.add(NOTE, key=key(), adapter=b"x")
        monkeypatch.chdir("/")
        assert bank.adapter_path("ada").read_bytes() == b"x" and bank.verify() == []


def test_many_keys_load_quickly(bank: Bank) -> None:
    vectors = np.random.default_rng(0).normal(size=(10_000, 576)).astype(np.float32)
    row = ("", "[]", "[]", "{}", "pending", 0, 0, 0, "", "{}")
    with bank._catalog.write() as connection:
        for number, vector in enumerate(vectors):
            connection.execute(
                "INSERT INTO memory (id, text, paraphrases, questions, metadata, state, activated,"
                " rank, adapter_bytes, created_at, training) VALUES (?,?,?,?,?,?,?,?,?,?,?)",
                (f"m{number}", *row),
            )
            connection.execute("INSERT INTO key VALUES (?, ?)", (number + 1, vector.tobytes()))
    best = 1e9
    for _ in range(3):
        start = time.process_time()
        ids, keys = bank.keys()
        best = min(best, time.process_time() - start)
    assert keys.shape == (10_000, 576) and keys.flags.c_contiguous and keys.dtype == np.float32
    assert ids[7] == "m7" and np.array_equal(keys, vectors)
    assert best < 0.5, f"{best:.3f} s"  # about 0.05 s on an idle core
