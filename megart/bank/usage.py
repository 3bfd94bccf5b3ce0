"""How often each memory answered, and when it last did. Counting may fail and may lag; it never holds up a question."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone

from .catalog import Catalog

# In the state of a bank: b"0" where nothing is counted.
STATE = "usage"


def counts(catalog: Catalog) -> dict[str, tuple[int, str]]:
    """Of each memory that ever answered, how often, and when it last did (UTC in ISO 8601), by id."""
    rows = catalog.read(
        "SELECT id, opened, last FROM usage JOIN memory USING (seq) WHERE typeof(opened) = 'integer' "
        "ORDER BY opened DESC, last DESC, id"
    )
    return {id: (int(opened), str(last)) for id, opened, last in rows}


def is_counted(catalog: Catalog) -> bool:
    return catalog.read("SELECT value FROM state WHERE name = ?", (STATE,)) != [(b"0",)]


def note(catalog: Catalog, opened: Mapping[str, int]) -> None:
    """Adds to the counts of some memories, by id. Raises BankError at once where another process writes."""
    if not opened or not is_counted(catalog):
        return
    now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    with catalog.aside() as connection:
        connection.executemany(
            "INSERT INTO usage SELECT seq, ?, ? FROM memory WHERE id = ? "
            "ON CONFLICT (seq) DO UPDATE SET opened = opened + excluded.opened, last = excluded.last",
            [(count, now, id) for id, count in opened.items()],
        )


def switch(catalog: Catalog, on: bool) -> None:
    """Whether to count from now on; what was counted is forgotten where not."""
    with catalog.write() as connection:
        connection.execute("DELETE FROM state WHERE name = ?", (STATE,))
        if not on:
            connection.execute("INSERT INTO state VALUES (?, ?)", (STATE, b"0"))
            connection.execute("DELETE FROM usage")
