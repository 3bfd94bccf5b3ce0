"""Which of two is more, or was earlier: each is asked about by itself, and arithmetic compares what is found.

A small model reads well and reckons badly. "Which costs more, the berth or the insurance?" is asked as "What is the
price of the berth?" and "What is the price of the insurance?". Questions in English that offer two things: "which is
cheaper, A or B", "is A or B cheaper", "is A cheaper than B". Plain text in, plain data out.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..gate.words import WORD
from .quantities import BARE, MONEY, Quantity, dates, figures, times_of_day, weekdays

TIME, SIZE = "time", "size"
# What a word that compares asks for, whether more or less of it, and the adjective: "how heavy is it?".
_WORDS: dict[str, tuple[str, bool, str]] = {}
for _kind, _more, _words in (
    (MONEY, True, "dearer pricier"),
    (MONEY, False, "cheaper cheapest"),
    (TIME, True, "later latest younger youngest newer newest last after"),
    (TIME, False, "earlier earliest older oldest first sooner soonest before"),
    (SIZE, True, "more most higher:high highest:high bigger:big biggest:big larger:large largest:large longer:long longest:long "
     "greater greatest heavier:heavy heaviest:heavy taller:tall tallest:tall hotter:hot hottest:hot warmer:warm warmest:warm "
     "deeper:deep wider:wide thicker:thick faster:fast farther:far further:far stronger:strong"),
    (SIZE, False, "less least fewer fewest lower:high lowest:high smaller:big smallest:big shorter:long shortest:long "
     "lighter:heavy lightest:heavy colder:cold coldest:cold cooler:cool thinner:thick slower:fast nearer:far closer:far"),
):  # fmt: skip
    for _word in _words.split():
        _WORDS[_word.partition(":")[0]] = (_kind, _more, _word.partition(":")[2])
# Nouns that say of what the price is, and other words that tell a question about money.
_PRICES = frozenset("rent fee fine bill price premium deposit salary wage quote invoice fare".split())
_PAID = frozenset("cost costs costing expensive costly pay pays paid priced charge charges charged worth spend spent dear cheap prices rents fees fines bills".split())  # fmt: skip
_OF_PRICE = frozenset("expensive costly".split())
_BE, _DO = frozenset("is are was were".split()), frozenset("do does did".split())
_HELPS = _BE | _DO | frozenset("will would has have had can could should".split())
# Verbs and little words at the edges of what is compared: "for the plot", "the chimney sweep charge".
_AROUND = frozenset(
    "cost costs charge charged pay take takes last weigh come comes start starts begin begins end ends run hold happen open opens "
    "close closes be been have need for on at in with from much any even a bit little far date due".split()
)
_NOBODY = frozenset("i you he she it they we me him her them us this that these those one ones there".split())
_IRREGULAR = frozenset("born built made done sold bought sent held paid put set begun written founded".split())


@dataclass(frozen=True)
class Comparison:
    """A question that compares two things, its ``options``.

    ``kind``: MONEY, TIME or SIZE; ``greater``: whether the one of more is meant, ``whether``: whether it is asked if
    the first one is that; ``asks``: for each the question about it alone.
    """

    options: tuple[str, str]
    kind: str
    greater: bool
    whether: bool
    asks: tuple[str, str]

    def quantities(self, text: str) -> list[Quantity]:
        """What in *text* may be compared."""
        if self.kind == TIME:
            return [*dates(text), *times_of_day(text), *weekdays(text)]
        there = figures(text)
        if self.kind == MONEY:
            sums = [one for one in there if one.kind == MONEY]
            return sums or [Quantity(one.span, one.size, MONEY) for one in there if one.kind == BARE]
        return [one for one in there if one.kind != MONEY]


    def winner(self, first: Quantity, second: Quantity) -> int | None:
        """0 or 1, the option that is meant; None where the two cannot be compared."""
        return int((second.size > first.size) == self.greater) if first.compares(second) else None


def comparison(question: str) -> Comparison | None:
    """*question* as a comparison of two things, None where it is none."""
    asked = question.strip().rstrip("?").strip()
    words = [word.lower() for word in WORD.findall(asked)]
    if not words or len(words) > 40:
        return None
    if words[0] in ("which", "who", "what"):
        return _which(asked)
    return _whether(asked) if words[0] in _HELPS else None


def _which(asked: str) -> Comparison | None:
    """ "Which costs more, A or B": what stands before the comma says what is compared."""
    parts = re.fullmatch(r"(?P<head>[^,:]+)[,:]\s*(?P<one>[^,:]+?),? or (?P<other>[^,]+)", asked)
    if parts is None:  # "Which is longer the pole or the mast"
        parts = re.fullmatch(r"(?P<head>[^,:]+?)\s(?P<one>(?:the|my|our|a|an) [^,:]+?) or (?P<other>(?:the|my|our|a|an) [^,]+)", asked)
    if parts is None:
        return None
    head = [word.lower() for word in WORD.findall(parts["head"])]
    return _made((parts["one"], parts["other"]), head, whether=False)


def _whether(asked: str) -> Comparison | None:
    """ "Is A or B cheaper", "do I pay more for A or for B", "is A cheaper than B", "is A before B"."""
    if re.search(r"[,:;]", asked):
        return None
    help, _, rest = asked.partition(" ")
    found = [m for m in WORD.finditer(rest) if m[0].lower() in _WORDS]
    than = re.search(r"\bthan\b", rest)
    alone = re.search(r"\b(?:before|after)\b", rest)
    either = re.findall(r"\bor\b", rest)
    if than and found and not either:
        word = [m for m in found if m.end() <= than.start()]
        if len(word) != 1:
            return None
        options, head = (rest[: word[0].start()], rest[than.end() :]), rest[word[0].start() : than.start()]
        return _made(options, [help, *_verbs(options[0]), *WORD.findall(head)], whether=True)
    if alone and len(found) == 1 and not either and help.lower() in _BE:
        return _made((rest[: alone.start()], rest[alone.end() :]), [help, alone[0]], whether=True)
    if len(either) != 1 or len(found) != 1 or than:
        return None
    one, other = re.split(r"\bor\b", rest)
    if found[0].start() < len(one):  # "do I pay more for A or for B"
        head, one = rest[: found[0].end()], rest[found[0].end() : len(one)]
    else:
        at = found[0].start() - (len(rest) - len(other))
        head, other = " ".join([*_verbs(other[:at]), other[at:]]), other[:at]
    return _made((one, other), [help, *WORD.findall(head)], whether=False)


def _verbs(option: str) -> list[str]:
    """The verb that ends "the kettle cost", if one does."""
    words = WORD.findall(option)
    return words[-1:] if words and words[-1].lower() in _AROUND else []


def _made(options: tuple[str, str], head: Sequence[str], *, whether: bool) -> Comparison | None:
    """``head``: the words that say what is compared, with the one that compares."""
    head = [word.lower() for word in head]
    comparing = [_WORDS[word] for word in head if word in _WORDS]
    cleaned = [_cleaned(option) for option in options]
    if not comparing or len({more for _, more, _ in comparing}) != 1 or not all(cleaned):
        return None
    kinds = [kind for kind, _, _ in comparing]
    of_money = MONEY in kinds or not (_PAID | _PRICES).isdisjoint(head)
    kind = TIME if TIME in kinds else MONEY if of_money else SIZE
    adjective = next((adjective for _, _, adjective in comparing if adjective), "")
    asks = [_asking(option, kind, head, adjective) for option in cleaned]
    return Comparison((cleaned[0], cleaned[1]), kind, comparing[0][1], whether, (asks[0], asks[1]))


def _cleaned(option: str) -> str:
    """*option* without the verbs and little words at its edges; empty where nothing is left that names a thing."""
    words = option.strip(" .!?\"'").split()
    while words and words[-1].lower() in _AROUND:
        words.pop()
    while words and words[0].lower() in _AROUND and not (words[0].lower() == "a" and len(words) > 1):
        words.pop(0)
    told = {word.lower() for word in WORD.findall(" ".join(words))} - {"the", "a", "an", "other"}
    return " ".join(words) if told - _NOBODY else ""


def _asking(option: str, kind: str, head: Sequence[str], adjective: str) -> str:
    """The question about *option* alone."""
    if kind == MONEY:
        return f"What is the {next((word for word in head if word in _PRICES), 'price')} of {option}?"
    rest = [word for word in head[1:] if word not in _WORDS]  # without "which"
    if kind == TIME:
        be = rest[0] if rest and rest[0] in _BE else head[0] if head[0] in _BE else "is"
        done = [word for word in rest if word.endswith("ed") or word in _IRREGULAR]
        return " ".join(["When", be, option, *done[:1]]) + "?"
    if adjective == "long" and not _BE.intersection(head):
        return f"How long does {option} take?"
    if adjective:
        return f"How {adjective} is {option}?"
    at = next(i for i, word in enumerate(head) if word in _WORDS)
    counted = [word for word in head[at + 1 :] if word not in _HELPS]
    if counted:
        return f"How many {' '.join(counted)} does {option} have?"
    verb = next((word for word in rest if word not in _HELPS), "have")
    return f"How much does {option} {verb.rstrip('s') if len(verb) > 3 else verb}?"
