"""When something was: "in December", "on 20 December 2025". A note seldom says so itself; the day it was written on does."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from .words import WORD, fold

# A month a line, in the languages of gate.languages, in the forms that follow a preposition.
_MONTHS = """
january januar jänner janvier enero gennaio janeiro januari styczeń stycznia styczniu январь января январе ocak jan
february februar février febrero febbraio fevereiro februari luty lutego lutym февраль февраля феврале şubat feb
march märz mars marzo março maart marzec marca marcu март марта марте mart mar
april avril abril aprile kwiecień kwietnia kwietniu апрель апреля апреле nisan apr
may mai mayo maggio maio mei maj maja maju май мая мае mayıs
june juni juin junio giugno junho czerwiec czerwca czerwcu июнь июня июне haziran jun
july juli juillet julio luglio julho lipiec lipca lipcu июль июля июле temmuz jul
august août agosto augustus augusti sierpień sierpnia sierpniu август августа августе ağustos aug
september septembre septiembre setiembre settembre setembro wrzesień września wrześniu сентябрь сентября сентябре eylül sep sept
october oktober octobre octubre ottobre outubro październik października październiku октябрь октября октябре ekim oct okt
november novembre noviembre novembro listopad listopada listopadzie ноябрь ноября ноябре kasım nov
december dezember décembre diciembre dicembre dezembro grudzień grudnia grudniu декабрь декабря декабре aralık dec dez
"""
_NUMBER_OF = {name: number for number, line in enumerate(_MONTHS.strip().splitlines(), start=1) for name in line.split()}
_NAME = "|".join(sorted(_NUMBER_OF, key=len, reverse=True))
_DAY, _YEAR = r"(?:3[01]|[12]\d|0?[1-9])", r"(?:19|20)\d\d"
_DATE = rf"""
    (?P<year1>{_YEAR})-(?P<number1>\d\d)-(?P<day1>\d\d)
    | (?P<day2>{_DAY})\.\s?(?P<number2>1[0-2]|0?[1-9])\.\s?(?P<year2>{_YEAR})
    | (?P<day3>{_DAY})(?:st|nd|rd|th|er|\.|º)?\s(?:(?:of|de)\s)?(?P<name3>{_NAME})\b\.?(?:,?\s(?:de\s)?(?P<year3>{_YEAR}))?
    | (?P<name4>{_NAME})\b\.?\s(?P<day4>{_DAY})(?:st|nd|rd|th)?(?:,?\s(?P<year4>{_YEAR}))?
    | (?P<name5>{_NAME})\b\.?\s(?:de\s)?(?P<year5>{_YEAR})
    | (?:(?P<year6>{_YEAR})\s?年\s?)?(?P<number6>1[0-2]|[1-9])\s?[月월](?:\s?(?P<day6>{_DAY})\s?[日号일])?
"""
_LED = "in on of last back during this past the im am vom letzten en le au el no em nel il di a op den i w we z в".split()
# A month or a year alone may be a name or a number: only "in May", "in 2025".
_PHRASE = re.compile(
    rf"(?:\b(?:(?:{'|'.join(_LED)})\s)*(?:{_DATE})|\b(?:(?:{'|'.join(_LED)})\s)+(?P<name7>{_NAME})\b|\bin\s(?P<year8>{_YEAR}))(?:(?<=[月월日号일])[にの에]?|(?!\w))",
    re.VERBOSE | re.IGNORECASE,
)
_ANY_MONTH = re.compile(rf"\b(?!(?-i:may|march|mar|mart)\b)(?:{_NAME})\b|\d\s?[月월]", re.IGNORECASE)
_ANY_YEAR = re.compile(rf"\b{_YEAR}\b")
# Times that mean nothing without the day that they were written on. Those that are another word in another language
# ("hier", "morgen", "now") only where they are all that is said.
_RELATIVE = r"""today|tonight|yesterday|tomorrow|(?:this|yesterday|tomorrow)\s(?:morning|afternoon|evening|noon)
    |(?:this|last|next)\s(?:night|week|month|year|weekend)|in\s\S+\s(?:days|weeks|months)
    |heute|gestern|vorgestern|übermorgen|aujourd['’]hui|demain|ce\smatin|ce\ssoir|hoy|ayer|anoche|esta\s(?:mañana|tarde)
    |oggi|ieri|domani|stamattina|stasera|hoje|ontem|amanhã|vandaag|gisteren|vanochtend|vanmorgen|vanmiddag|vanavond
    |idag|i\sdag|igår|i\sgår|i\smorgon|dziś|dzisiaj|wczoraj|jutro|сегодня|вчера|завтра|bugün|dün|yarın
    |今天|昨天|明天|今日|昨日|明日|今朝|오늘|어제|내일"""
_ONLY_RELATIVE = re.compile(
    rf"(?:early\s|late\s|earlier\s)?(?:{_RELATIVE}|(?:this\s)?(?:morning|afternoon|evening)|(?:just\s)?now|hier|morgen)"
    r"(?:\s(?:früh|morgen|mittag|nachmittag|abend|soir|matin))?",
    re.VERBOSE | re.IGNORECASE,
)
_HOLDS_RELATIVE = re.compile(rf"(?<!\w)(?:{_RELATIVE})", re.VERBOSE | re.IGNORECASE)
_WHEN = frozenset(map(fold, "when wann quand cuándo quando wanneer när kiedy когда".split()))
_WHEN_ELSEWHERE = re.compile(r"what (?:day|date)|ne zaman|いつ|什么时候|何时|언제", re.IGNORECASE)


class Note(Protocol):
    """``created``: the day that it was written on, ISO 8601."""

    @property
    def title(self) -> str | None: ...
    @property
    def text(self) -> str: ...
    @property
    def created(self) -> str: ...


@dataclass(frozen=True)
class When:
    """Words of a question that say when: where they stand, in characters, and what they name; None for what they do not."""

    span: tuple[int, int]
    year: int | None
    month: int | None
    day: int | None

    @property
    def parts(self) -> int:
        """How many of year, month and day it names."""
        return sum(part is not None for part in (self.year, self.month, self.day))

    def is_of(self, note: Note) -> bool:
        """Whether *note* is of that time by the day that it was written on; not where it names a month, or a year, itself."""
        says_so_itself = _ANY_YEAR if self.month is None else _ANY_MONTH
        if says_so_itself.search(f"{note.title or ''}\n{note.text}"):
            return False
        year, month, day = map(int, note.created[:10].split("-"))
        return self.year in (None, year) and self.month in (None, month) and self.day in (None, day)


def when(question: str) -> When | None:
    """What *question* says of the time it is about; None where it says nothing, or more than one time."""
    found = list(_PHRASE.finditer(question))
    if len(found) != 1:
        return None
    parts = {key.rstrip("12345678"): value for key, value in found[0].groupdict().items() if value}
    name = parts.get("name")
    month = _NUMBER_OF[name.lower()] if name else int(parts["number"]) if "number" in parts else None
    year, day = (int(parts[key]) if key in parts else None for key in ("year", "day"))
    return When(found[0].span(), year, month, day)


def without_when(question: str, note: Note) -> str:
    """*question* less the time that *note* is of by the day that it was written on."""
    said = when(question)
    if said is None or not said.is_of(note):
        return question
    start, end = said.span
    rest = re.sub(r"\s+(?=[?.!])", "", f"{question[:start].rstrip()} {question[end:].lstrip(' ,')}".strip())
    return rest[0].upper() + rest[1:] if WORD.search(rest) else question


def asks_when(question: str) -> bool:
    """Whether *question* asks when something was or will be."""
    asked = WORD.search(question)
    return (asked is not None and fold(asked[0]) in _WHEN) or _WHEN_ELSEWHERE.search(question) is not None


def is_relative(words: str, *, inside: bool = False) -> bool:
    """Whether *words* are (or hold, ``inside``) a time that only the day they were written on makes one: "last week"."""
    if inside:
        return _HOLDS_RELATIVE.search(words) is not None
    return _ONLY_RELATIVE.fullmatch(words.strip(" .,!")) is not None
