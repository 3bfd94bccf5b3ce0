"""megart stats: what a bank holds, and what of it is used."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from typing import Any

from ..bank import Bank
from ..errors import InputError
from . import common, ui

EPILOG = """\
examples:
  megart stats
  megart stats --bank notes --json
  megart stats --usage off       counts no longer which memories answer, and forgets the counts

What answered is counted in the bank alone, in no pack, and is told to nobody."""
MOST = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    common.add_bank(parser, packs=True)
    parser.add_argument("--usage", choices=("on", "off"), help="whether to count which memories answer (default: on)")
    common.add_json(parser)


def run(args: argparse.Namespace) -> int:
    with common.open_bank(args) as bank:
        if args.usage:
            if bank.path.is_file():
                raise InputError(f"{bank.path} is a pack, which counts nothing; give a bank")
            bank.count_use(args.usage == "on")
        counts = stats(bank)
        if args.json:
            ui.put_json(counts)
            return 0
        names = ", ".join(f"{tag} {count}" for tag, count in counts["tags"].items())
        used = [f"{one['id']} ({one['opened']} times, last {ui.moment(one['last'])})" for one in counts["most_used"]]
        fields = [
            ("memories", f"{counts['memories']}, of which {counts['learnt']} learnt and {counts['pending']} pending"),
            ("size", f"{ui.size(counts['bytes'])}, adapters {ui.size(counts['adapter_bytes'])}"),
            ("tags", names or "-"),
            ("answered", f"{counts['used']} memories" if counts["counts_use"] else "not counted"),
        ]
        fields += [("most used", line) for line in used]
        if counts["expire"]:
            fields.append(("to be forgotten", f"{counts['expire']}, of which {counts['expired']} expired"))
        ui.put_fields(fields)
    return 0


def stats(bank: Bank) -> dict[str, Any]:
    """What --json prints."""
    records, used, now = bank.records(), bank.use(), time.time()
    tags = Counter(tag for record in records for tag in record.tags)
    ends = [record.expires for record in records if record.expires is not None]
    return {
        "bank": str(bank.path),
        "memories": len(records),
        "learnt": sum(record.state == "learnt" for record in records),
        "pending": sum(record.state == "pending" for record in records),
        "bytes": _bytes(bank),
        "adapter_bytes": sum(record.adapter_bytes for record in records),
        "tags": dict(tags.most_common()),
        "counts_use": bank.counts_use,
        "used": len(used),
        "most_used": [{"id": id, "opened": n, "last": last} for id, (n, last) in [*used.items()][:MOST]],
        "expire": len(ends),
        "expired": sum(end <= now for end in ends),
    }


def _bytes(bank: Bank) -> int:
    files = [bank.path] if bank.path.is_file() else [path for path in bank.path.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files)
