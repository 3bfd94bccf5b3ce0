"""A memory as its user gives it and as the bank keeps it. Knows nothing of files, SQL or models."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from typing import Any

from ..errors import InputError, MemoryNotFoundError

ID_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
# In the metadata of a memory: the id of the one that took its place.
SUPERSEDED_BY = "superseded_by"
# In the metadata of a memory: when it is to be forgotten, ISO 8601.
FORGET_AFTER = "forget_after"
_SLUG_LENGTH = 40
_FIRST_WORDS = 40  # characters
_DATE = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Memory:
    """One short text to remember, and what belongs to it.

    White space around the text, title, paraphrases and questions is removed. Raises InputError when a
    field is empty, of the wrong type or not storable as UTF-8, or when the id breaks `ID_PATTERN`.
    """

    text: str
    id: str | None = None
    title: str | None = None
    paraphrases: tuple[str, ...] = ()
    questions: tuple[str, ...] = ()
    metadata: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        put = object.__setattr__
        put(self, "text", _clean("text", self.text))
        if self.id is not None and not is_id(self.id):
            raise InputError(
                f"got the id {self.id!r}; expected 1 to 64 of A-Z a-z 0-9 . _ - starting with a letter or digit"
            )
        if self.title is not None:
            put(self, "title", _clean("title", self.title, may_be_empty=True) or None)
        put(self, "paraphrases", _clean_all("paraphrases", self.paraphrases))
        put(self, "questions", _clean_all("questions", self.questions))
        put(self, "metadata", _clean_metadata(self.metadata))

    @classmethod
    def from_dict(cls, obj: Mapping[str, Any]) -> Memory:
        """A memory from one JSON object; keys that are not fields go to `metadata`. Raises InputError."""
        if not isinstance(obj, Mapping):
            raise InputError(f'got {_kind(obj)}; expected a JSON object with the key "text"')
        if obj.get("text") is None:
            raise InputError('no "text"; expected a JSON object with the key "text"')
        known = ("text", "id", "title", "paraphrases", "questions")
        given = obj.get("metadata")
        if given is not None and not isinstance(given, Mapping):
            raise InputError(f"metadata is {_kind(given)}; expected a JSON object")
        extra = {key: value for key, value in obj.items() if key not in (*known, "metadata")}
        fields: dict[str, Any] = {key: obj[key] for key in known if obj.get(key) is not None}
        return cls(**fields, metadata={**(given or {}), **extra})

    def tagged(self, tags: Sequence[str]) -> Memory:
        """The same memory with *tags* besides its own in ``metadata["tags"]``. Raises InputError for an empty one."""
        wanted = _clean_all("tags", tags)
        own = _tags(self.metadata)
        more = [tag for tag in dict.fromkeys(wanted) if tag not in own]
        return replace(self, metadata={**self.metadata, "tags": [*own, *more]}) if more else self

    def default_id(self, digits: int = 6) -> str:
        """An ASCII id made of the title or the first words, and some digits of the text's hash."""
        words = self.title or " ".join(self.text.split()[:6])
        plain = unicodedata.normalize("NFKD", words).encode("ascii", "ignore").decode().lower()
        slug = re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:_SLUG_LENGTH].rstrip("-")
        digest = hashlib.sha256(self.text.encode()).hexdigest()[:digits]
        return f"{slug or 'memory'}-{digest}"


def first_words(text: str) -> str:
    """The first line of *text*, of a long one as many whole words as make 40 characters."""
    line = text.strip().partition("\n")[0]
    if len(line) <= _FIRST_WORDS:
        return line.rstrip(". ")
    cut = line[: _FIRST_WORDS + 1]
    return (cut.rpartition(" ")[0] or cut).rstrip(" ,;:.-") + "..."


@dataclass(frozen=True)
class Record:
    """A memory as the bank keeps it.

    state: "learnt" (it has an adapter) or "pending"; activated: the adapter works only from the
    generation prompt on; adapter_bytes and adapter_sha256: size and hash of the adapter's file;
    created_at, learnt_at: UTC in ISO 8601; training: free-form figures of how it was learnt.
    """

    id: str
    title: str | None
    text: str
    paraphrases: tuple[str, ...]
    questions: tuple[str, ...]
    metadata: dict[str, Any]
    state: str
    recipe: str | None
    activated: bool
    rank: int
    adapter_bytes: int
    adapter_sha256: str | None
    created_at: str
    learnt_at: str | None
    training: dict[str, Any]

    @property
    def memory(self) -> Memory:
        """What the user gave, with the id it was stored under."""
        return Memory(self.text, self.id, self.title, self.paraphrases, self.questions, self.metadata)

    @property
    def heading(self) -> str:
        """What a person knows it by: its title, else its first words, else (a pack without texts) its id."""
        return self.title or first_words(self.text) or self.id

    @property
    def titled_text(self) -> str:
        """Its title, where it has one, above its text."""
        return f"{self.title or ''}\n{self.text}"

    @property
    def created(self) -> str:
        """When the note was written, ISO 8601: as its metadata say ("created"), else when the bank got it."""
        given = self.metadata.get("created")
        return given if isinstance(given, str) and _DATE.match(given) else self.created_at

    @property
    def expires(self) -> float | None:
        """When it is to be forgotten, in seconds since 1970, as its metadata say ("forget_after"); None: never."""
        given = self.metadata.get(FORGET_AFTER)
        return _seconds(given) if isinstance(given, str) else None

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags in the metadata, as given: "tags" (a list, or words between commas) and "tag"."""
        return _tags(self.metadata)

    def carries(self, tags: Sequence[str]) -> bool:
        """Whether it has one of *tags*, in upper or lower case; True when there are none."""
        return not tags or not {tag.casefold() for tag in tags}.isdisjoint(map(str.casefold, self.tags))


def record_json(record: Record) -> bytes:
    """All of *record* as JSON, the same bytes for the same record."""
    return json.dumps(asdict(record), sort_keys=True).encode()


def _seconds(moment: str) -> float | None:
    try:
        when = datetime.fromisoformat(moment.replace("Z", "+00:00"))
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None


def _tags(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    items: list[object] = []
    for name in ("tags", "tag"):
        value = metadata.get(name)
        items += value.split(",") if isinstance(value, str) else value if isinstance(value, list) else []
    return tuple(dict.fromkeys(tag for item in items if (tag := str(item).strip())))


def check_tags(tags: Sequence[str], records: Sequence[Record]) -> None:
    """Raises InputError for one of *tags* that none of *records* carries, with the nearest that there are."""
    missing = {tag.casefold(): tag for tag in tags}
    for record in records:
        if not missing:
            return
        for tag in record.tags:
            missing.pop(tag.casefold(), None)
    if missing:
        known = {tag.casefold(): tag for record in records for tag in record.tags}
        near = difflib.get_close_matches(next(iter(missing)), known, n=3, cutoff=0.0)
        some = ", ".join(known[tag] for tag in near) + (", ..." if len(known) > len(near) else "")
        there = f"there are: {some}" if near else "no memory of the bank has a tag"
        raise InputError(f"got the tag {next(iter(missing.values()))!r}, which no memory carries; {there}")


def not_found(id: object, ids: Sequence[str], where: str) -> MemoryNotFoundError:
    """The error that says so, with the nearest of the *ids* that there are *where* it was looked for."""
    near = difflib.get_close_matches(str(id), ids, n=1)
    hint = f"did you mean {near[0]}?" if near else "megart list shows what there is"
    return MemoryNotFoundError(f"no memory {id!r} in {where}; {hint}")


def is_id(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch(ID_PATTERN, value) is not None


def to_json(name: str, value: Mapping[str, Any]) -> str:
    """`value` as strict JSON; raises InputError naming the field when it cannot be."""
    try:
        return json.dumps(dict(value), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"{name} is not storable as JSON: {error}") from None


def _clean(name: str, value: object, *, may_be_empty: bool = False) -> str:
    if not isinstance(value, str):
        raise InputError(f"{name} is {_kind(value)}; expected a string")
    value = value.strip()
    if not value and not may_be_empty:
        raise InputError(f"{name} is empty; expected at least one word")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InputError(f"{name} holds half of a surrogate pair; expected text that UTF-8 can store") from None
    return value


def _clean_all(name: str, values: object) -> tuple[str, ...]:
    if isinstance(values, (str, bytes)) or not isinstance(values, Sequence):
        raise InputError(f"{name} is {_kind(values)}; expected a list of strings")
    return tuple(_clean(f"{name}[{index}]", value) for index, value in enumerate(values))


def _clean_metadata(value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise InputError(f"metadata is {_kind(value)}; expected a mapping with string keys")
    copy: dict[str, Any] = json.loads(to_json("metadata", value))
    return copy


def _kind(value: object) -> str:
    names = {
        "NoneType": "null",
        "str": "a string",
        "dict": "an object",
        "list": "a list",
        "bool": "a boolean",
    }
    return names.get(type(value).__name__, f"of type {type(value).__name__}")
