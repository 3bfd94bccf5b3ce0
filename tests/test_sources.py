"""Memories out of folders, vaults and chats; a file that is read again replaces what came from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megart.bank import Bank, Memory
from megart.bank.edits import edited
from megart.bank.sources import read_sources
from megart.errors import InputError


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


def test_a_folder_gives_what_its_files_hold(tmp_path: Path) -> None:
    write(tmp_path / "b" / "wifi.txt", "Guest: LarkNest", "utf-16")
    write(tmp_path / "a.md", "# Hive\n\nHoney.\n\n# Empty\n")
    write(tmp_path / "rows.jsonl", '{"text": "The gate is green.", "created": "2024-05-01"}\n')
    write(tmp_path / "empty.md", " \n")
    write(tmp_path / ".obsidian" / "app.md", "hidden")
    write(tmp_path / "photo.png", "no text")
    old = write(tmp_path / "old.txt", "Käse", "latin-1")
    made = read_sources([str(tmp_path)])
    assert {(m.title, m.text) for m in made.memories} == {
        ("wifi", "Guest: LarkNest"), ("Hive", "Honey."), (None, "The gate is green."),
    }  # fmt: skip
    assert made.skipped == [f"{tmp_path / 'empty.md'} is empty", f"{old} is not UTF-8 at byte 1; save it as UTF-8"]
    with pytest.raises(InputError, match="is not UTF-8 at byte 1"):  # a file that was named has to be read
        read_sources([str(old), str(tmp_path / "a.md")])
    about = {m.text: m.metadata for m in made.memories}
    assert about["The gate is green."]["created"] == "2024-05-01"
    assert about["Honey."]["source"]["file"] == str(tmp_path / "a.md") and about["Honey."]["created"][:2] == "20"


def test_patterns_and_what_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path / "one.txt", "One.")
    write(tmp_path / "two.txt", "Two.")
    made = read_sources([str(tmp_path / "*.txt")])
    assert [m.text for m in made.memories] == ["One.", "Two."]
    write(tmp_path / "none" / "x.pdf", "x")
    for given in (str(tmp_path / "none"), str(tmp_path / "*.rst"), str(write(tmp_path / "e.txt", ""))):
        with pytest.raises(InputError):
            read_sources([given])


def test_a_note_of_a_vault_is_read_without_its_marks(tmp_path: Path) -> None:
    (tmp_path / ".obsidian").mkdir()
    write(tmp_path / "a.md", "By the [[Old Oak|oak]] and [[Mill#Door]]. ![[photo.png]] #queen %%not this%%")
    (memory,) = read_sources([str(tmp_path / "a.md")]).memories
    assert memory.text == "By the oak and Mill.  #queen" and memory.metadata["tags"] == ["queen"]


def test_a_chat_is_remembered_by_its_exchanges(tmp_path: Path) -> None:
    talk = {
        "title": "Dinner",
        "create_time": 1700000000,
        "messages": [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": "What does Ines eat?"},
            {"role": "assistant", "content": [{"type": "text", "text": "Lentils."}]},
            {"role": "user", "content": "And to drink?", "timestamp": "2024-02-01T10:00:00Z"},
            {"role": "assistant", "content": "Tea."},
        ],
    }
    made = read_sources([str(write(tmp_path / "c.json", json.dumps([talk])))]).memories
    assert [(m.title, m.text) for m in made] == [
        ("Dinner", "What does Ines eat?\n\nLentils."), ("Dinner", "And to drink?\n\nTea."),
    ]  # fmt: skip
    assert [m.metadata["created"] for m in made] == ["2023-11-14T22:13:20Z", "2024-02-01T10:00:00Z"]
    with pytest.raises(InputError, match="expected conversations"):
        read_sources([str(write(tmp_path / "d.json", '{"a": 1}'))])


def test_an_edited_file_is_known_again(tmp_path: Path, model: Path) -> None:
    path = write(tmp_path / "a.md", "# Hive 5\n\nGreen.\n\n# Hive 7\n\nBlue queen.\n")
    with Bank.create(tmp_path / "bank", model) as bank:
        assert edited(bank, path, []) is None
        for memory in read_sources([str(path)]).memories:
            bank.add(memory, key=np.ones(8, np.float32))
        write(path, "# Hive 5\n\nGreen.\n\n# Hive 7\n\nRed queen.\n\n# Hive 8\n\nEmpty box.\n")
        edit = edited(bank, path, read_sources([str(path)]).memories)
        assert edit and (edit.new, edit.same, [r.text for r in edit.gone]) == (2, 1, ["Blue queen."])
        assert "replaced or gone: Hive 7" in edit.told(kept=False)


def test_a_memory_says_when_it_was_written(tmp_path: Path, model: Path) -> None:
    with Bank.create(tmp_path / "bank", model) as bank:
        dated = bank.add(Memory("a", id="a", metadata={"created": "2024-05-01"}), key=np.ones(8, np.float32))
        other = bank.add(Memory("b", id="b", metadata={"created": "soon"}), key=np.ones(8, np.float32))
    assert dated.created == "2024-05-01" and other.created == other.created_at


def test_hidden_folders_are_left_out(tmp_path: Path) -> None:
    write(tmp_path / ".trash" / "old.md", "Gone.")
    with pytest.raises(InputError, match="without any file"):
        read_sources([str(tmp_path)])
