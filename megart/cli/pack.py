"""megart pack: a bank as one file, used in place."""

from __future__ import annotations

import argparse
import os
from contextlib import ExitStack
from pathlib import Path

from .. import readers
from ..bank import Bank, Record
from ..bank.memory import check_tags
from ..bank.pack import write_pack
from ..bank.packed import PackedBank
from ..errors import InputError
from ..gate.words import terms
from . import common, ui

EPILOG = """\
examples:
  megart pack notes.megapack
  megart pack --bank notes --tag town town.megapack
  megart pack --query "bus lake" bus.megapack              what holds both words, in whatever form
  megart ask --bank notes.megapack "Where is the key?"     reads the file where it lies
  megart pack new.megapack --since notes.megapack          what changed; megart merge new.megapack BANK applies it
  megart pack notes.megapack --sign key.bin                32 bytes, an Ed25519 private key; --new-key makes one"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="the file to write")
    common.add_bank(parser)
    parser.add_argument("--tag", action="append", default=[], metavar="T", help="only memories that carry the tag T")
    parser.add_argument("--only", action="append", default=[], metavar="ID", help="only this one; may be given again")
    parser.add_argument("--query", metavar="WORDS", help="only memories whose title, text or tags hold all these words")
    parser.add_argument(
        "--since", metavar="OLD", help="only what changed since the pack OLD; megart merge FILE BANK applies it"
    )
    parser.add_argument(
        "--no-text",
        action="store_true",
        help="leave out the texts: what a memory says is in its weights alone (titles, tags, dates stay)",
    )
    parser.add_argument("--sign", metavar="KEY", help="sign with the Ed25519 private key in this file")
    parser.add_argument("--new-key", action="store_true", help="make KEY, and KEY.pub for those who verify, first")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    if args.new_key and not args.sign:
        raise InputError("--new-key needs --sign KEY, the file to make")
    if args.since and args.no_text:
        raise InputError("--since needs the texts and --no-text leaves them out; give one of them")
    with ExitStack() as opened:
        bank = opened.enter_context(Bank.open(common.bank_path(args.bank)))
        key = _key(Path(args.sign).expanduser(), args.new_key) if args.sign else None
        since = opened.enter_context(PackedBank(args.since)) if args.since else None
        records = bank.records()
        check_tags(args.tag, records)
        for id in args.only:
            bank.get(id)
        only = {id.lower() for id in args.only}
        wanted = terms(args.query or "")
        chosen = [
            r.id for r in records
            if r.carries(args.tag) and (not only or r.id.lower() in only) and wanted <= terms(_text_of(r))
        ]  # fmt: skip
        if wanted and not chosen:
            raise InputError(f"no memory that was chosen holds all of {args.query!r}; give fewer words")
        if bank.without_evidence():  # imported, say, and never asked since: nothing would find them
            from ..runtime.assistant import Assistant

            with Assistant(bank) as assistant:
                assistant.on_model(assistant.open_bank.refresh)
        from ..runtime.embed import ready_keys

        ready = None if since else ready_keys(bank)
        reader = None if since else readers.own_bytes(bank.base.sha256)
        size = write_pack(bank, args.file, ids=chosen, sign=key, ready=ready, text=not args.no_text, since=since, reader=reader)
        pack = opened.enter_context(PackedBank(args.file))
        forgotten = [*pack.delta.forgotten] if pack.delta else []
        if args.json:
            fields = {"pack": args.file, "memories": len(pack), "bytes": size, "signed": key is not None}
            ui.put_json({**fields, "forgotten": forgotten} if since else fields)
        else:
            less = f", and that {len(forgotten)} are forgotten," if since else ""
            ui.put(f"packed {len(pack)} memories{less} of {bank.path} into {args.file} ({ui.size(size)})")
    return 0


def _text_of(record: Record) -> str:
    return " ".join((record.title or "", record.text, *record.tags))


def _key(path: Path, make: bool) -> bytes:
    if make:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.generate()
        for file, data, mode in (
            (path, private.private_bytes_raw(), 0o600),
            (path.with_name(f"{path.name}.pub"), private.public_key().public_bytes_raw(), 0o644),
        ):
            try:
                with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                    out.write(data)
            except OSError as error:
                raise InputError(f"cannot make {file}: {error.strerror or error}") from error
    return common.read_key(path)
