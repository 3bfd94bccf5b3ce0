"""What several verbs share: their options, opening the bank, reading words. Draws nothing."""

from __future__ import annotations

import argparse
import os
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from ..bank import Bank, Record
from ..bank.catalog import FILE_NAME
from ..bank.pack import PackedBank, open_path
from ..errors import InputError
from ..models import DEFAULT_MODEL, Model, resolve_model, user_data_dir


def add_bank(parser: argparse.ArgumentParser, *, packs: bool = False) -> None:
    parser.add_argument(
        "--bank",
        metavar="DIR",
        help="the bank's folder (default: $MEGART_BANK, else in the user's data directory)",
    )
    if packs:
        add_verify_key(parser)


def add_verify_key(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--verify-key", metavar="KEY", help="refuse a pack that this Ed25519 public key does not verify"
    )


def verify_key(args: argparse.Namespace) -> bytes | None:
    """The key that --verify-key names; None without it. Raises InputError."""
    return read_key(Path(args.verify_key).expanduser()) if getattr(args, "verify_key", None) else None


def read_key(path: Path) -> bytes:
    """A raw Ed25519 key. Raises InputError."""
    try:
        with open(path, "rb") as file:
            key = file.read(33)
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror or error}") from error
    if len(key) != 32:
        raise InputError(f"{path} has {'more than 32' if len(key) > 32 else len(key)} bytes; expected 32, a raw Ed25519 key")
    return key


def add_json(parser: argparse.ArgumentParser, help: str = "print JSON") -> None:
    parser.add_argument("--json", action="store_true", help=help)


def add_model(parser: argparse.ArgumentParser, default: str, *, hf: bool = False) -> None:
    parser.add_argument("--model", metavar="M", help=f'"smollm2" or the path of a GGUF file (default: {default})')
    if hf:
        parser.add_argument(
            "--hf",
            metavar="DIR",
            help="the model's Hugging Face folder, to teach from it instead of the GGUF",
        )


def add_scope(parser: argparse.ArgumentParser) -> None:
    """The options that say which memories may open."""
    group = parser.add_argument_group("which memories may open")
    group.add_argument("--tag", action="append", default=[], metavar="T", help="only those that carry the tag T")
    group.add_argument("--only", action="append", default=[], metavar="ID", help="only this one; may be given again")
    group.add_argument(
        "--without", action="append", default=[], metavar="ID", help="never this one; may be given again"
    )
    group.add_argument(
        "--open",
        action="append",
        default=[],
        metavar="ID[=G]",
        help="open this one whatever the gate says, with the gate G (default: equal shares of 1)",
    )


def scope(args: argparse.Namespace) -> dict[str, Any]:
    """The Scope that the options of `add_scope` name, by its name; empty without any. Raises InputError."""
    if not (args.only or args.without or args.tag or args.open):
        return {}
    from ..runtime.scope import Scope

    gates: dict[str, float] = {}
    for item in args.open:
        id, equals, value = item.partition("=")
        try:
            gates[id] = float(value) if equals else 1.0 / len(args.open)
        except ValueError:
            raise InputError(f"got --open {item!r}; expected ID or ID=GATE with a number above 0") from None
        if not 0 < gates[id] <= 16:
            raise InputError(f"got the gate {value} for {id!r}; expected a number above 0, at most 16")
    return {"scope": Scope(only=tuple(args.only), without=tuple(args.without), tags=tuple(args.tag), gates=gates)}


def bank_path(given: str | None) -> Path:
    """--bank, else MEGART_BANK, else the bank in the user's data directory. Raises InputError."""
    if given is None:
        given = os.environ.get("MEGART_BANK") or str(user_data_dir() / "bank")
    if not given:
        raise InputError("--bank is empty; expected the path of a folder")
    return Path(given).expanduser()


def open_bank(args: argparse.Namespace) -> Bank:
    """The bank that the options name, a pack where that is a file; never makes one. Raises BankError with the remedy."""
    bank = open_path(bank_path(args.bank), verify_key(args))
    if isinstance(bank, PackedBank) and bank.delta is not None:
        bank.close()
        raise InputError(f"{bank.path} holds only what changed since another pack; run: megart merge {bank.path} BANK")
    return cast(Bank, bank)  # a pack reads as a bank does, and refuses to be changed


def open_or_make_bank(args: argparse.Namespace) -> Bank:
    """As `open_bank`, but the user's own bank is made where there is none yet."""
    path = bank_path(args.bank)
    if args.bank is not None or os.environ.get("MEGART_BANK") or (path / FILE_NAME).exists():
        return Bank.open(path)
    from . import ui

    bank = Bank.create(path, resolve_model(args.model or DEFAULT_MODEL, args.hf), exist_ok=True)
    ui.say(f"made the bank {path} for {bank.base.name}")
    return bank


def model_of(args: argparse.Namespace, bank: Bank) -> Model | None:
    """The model that --model and --hf name; None for the bank's own."""
    if args.model is None and args.hf is None:
        return None
    return resolve_model(bank.model if args.model is None else args.model, args.hf)


def record_json(record: Record) -> dict[str, Any]:
    """A memory as --json prints it."""
    return asdict(record)


def question(words: list[str], what: str) -> str:
    """The words of the command line, or standard input for "-" or when there are none."""
    if words == ["-"] or (not words and not stdin_is_terminal()):
        text = read_stdin()
    else:
        text = " ".join(words)
    if not text.strip():
        raise InputError(f'got no {what}; give some words, or "-" for standard input')
    return text.strip()


def read_stdin() -> str:
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.read().removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 at byte {error.start}; send it as UTF-8") from None


def find_record(bank: Bank | PackedBank, name: str, *, begun: bool = True) -> Record:
    """The memory that a person calls *name*: its id, else its title, else (``begun``) how its id alone begins.

    Raises InputError where two are meant, MemoryNotFoundError where none is.
    """
    wanted, records = name.strip().casefold(), bank.records()
    titled = [record for record in records if (record.title or "").casefold() == wanted]
    beginning = [record for record in records if begun and wanted and record.id.casefold().startswith(wanted)]
    for hits in ([record for record in records if record.id.casefold() == wanted], titled, beginning):
        if len(hits) == 1:
            return hits[0]
        if hits:
            ids = ", ".join(record.id for record in hits[:4]) + (", ..." if len(hits) > 4 else "")
            raise InputError(f"{name!r} may be {len(hits)} memories; give one of these ids: {ids}")
    return bank.get(name)


def stdin_is_terminal() -> bool:
    return sys.stdin is None or sys.stdin.isatty()


def positive(text: str) -> int:
    """An option's whole number of at least 1."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 1 to 999999999")
    return int(text)


def whole(text: str) -> int:
    """An option's whole number of at least 0."""
    if not re.fullmatch(r"[0-9]{1,10}", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number from 0 to 9999999999")
    return int(text)


_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}


def duration(text: str) -> int:
    """An option's span of time, in seconds."""
    match = re.fullmatch(r"([1-9][0-9]{0,4})([mhdwy])", text)
    if match is None or (match[2] == "y" and int(match[1]) > 1000):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number with m, h, d, w or y, such as 30d")
    return int(match[1]) * _UNITS[match[2]]


def number(text: str) -> float:
    """An option's decimal number of at least 0."""
    if not re.fullmatch(r"[0-9]{0,9}\.?[0-9]{0,9}", text) or not re.search("[0-9]", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a number of at least 0, such as 0.7")
    return float(text)


def read_text(path: str) -> str:
    """The text of a file that an option names. Raises InputError."""
    try:
        return Path(path).expanduser().read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 at byte {error.start}") from None


def device(text: str) -> str:
    """A torch device, by its look only."""
    if not re.fullmatch(r"(cpu|mps|cuda)(:[0-9]+)?", text):
        raise argparse.ArgumentTypeError(f"got {text!r}; expected cpu, cuda, cuda:1 or mps")
    return text
