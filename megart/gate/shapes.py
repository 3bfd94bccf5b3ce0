"""What is asked for, where it has a shape of its own: a telephone number, an e-mail, web or IP address.

A small reader is unsure of "what is the plumber's telephone number?", but whether a text holds one can be seen. Words in
English, German, French, Spanish, Italian, Portuguese, Dutch, Polish, Swedish and Russian.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .words import WORD, fold, term

Span = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """``asked``: of the words that name it, folded; ``there``: of one in a text; ``least``: what a text without one lacks."""

    asked: re.Pattern[str]
    there: re.Pattern[str]
    least: re.Pattern[str] | None = None

    def spans(self, text: str) -> list[Span]:
        """Where it stands in *text*, [start, end) in characters."""
        found = [match.span(match.lastindex or 0) for match in self.there.finditer(text)]
        return [span for span in found if not _DATE.fullmatch(text[slice(*span)])]

    def is_missing(self, text: str) -> bool:
        """Whether *text* can hold none, however it is written."""
        return self.least is not None and self.least.search(text) is None


@dataclass(frozen=True)
class Asked:
    """The shape of what a question asks for, and the terms that name it: "telephone", "number"."""

    shape: Shape
    terms: frozenset[str]


_DATE = re.compile(r"\d{1,4}[./-]\d{1,2}[./-]\d{1,4}")
_TELEPHONE = r"(?:tele)?phone|telefon|telefoon|mobile(?: phone)?|cell(?: ?phone)?|handy|mobil|fax|tel"
_SHAPES = (
    Shape(
        re.compile(
            rf"(?:{_TELEPHONE})[ -]?(?:numbers?|no|nr|nummer|nummern)|rufnummer|(?:tele)?phone|telefono|"
            r"(?:numero|numeros) (?:de |di |do )?(?:telephone|telefono|telefone|portable|movil|cellulare)|"
            r"numer\w* telefonu|номер\w* телефона"
        ),
        re.compile(
            r"(?<![\w.,-])(?:\+|\(?0)\d[\d ()/.-]{4,}\d(?![\w-])|(?<![\w.,-])\d{3}[ -]\d{4}(?![\w-])|"
            r"\b(?:tel|ext|phone|extension|telefon|tél|call|ring|dial)[ .:]{1,3}(\d{3,})(?![\w-]| \d)",
            re.IGNORECASE,
        ),
        re.compile(r"\d\D?\d\D?\d"),
    ),
    Shape(
        re.compile(r"(?:e-?mail|mail)(?:[ -]?(?:address|adresse|adres|adress))?|courriel|correo(?: electronico)?|(?:adresse|adres) e-?mail"),
        re.compile(r"[\w.+-]+@[\w-]+(?:\.[\w-]+)*"),
        re.compile("@"),
    ),
    Shape(
        re.compile(r"web ?site|web ?page|home ?page|url|web ?(?:address|adresse|seite)|site web|sitio web|sito(?: web)?|internet ?adresse"),
        re.compile(
            r"(?<![@\w.-])(?:https?://)?(?:[\w-]+\.)+(?:com|org|net|info|io|app|dev|shop|example|eu|uk|de|at|ch|fr|it|es|pt|nl|be|"
            r"pl|cz|se|no|dk|fi|ie|us|ca|au|nz|ru|jp|cn|kr|br|in)\b(?:/[^\s,;)]*)?",
            re.IGNORECASE,
        ),
    ),
    Shape(re.compile(r"ip(?:[ -]?(?:address|adresse|adres))?|adresse ip"), re.compile(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?![\w.]\d)")),
)  # fmt: skip
_NUMBER_OF = re.compile(r"\s*(?:do|does|did|has|have|is)\b")  # "which mobile number does Ada have", not "which phone do I have"
# A question for something else: for whom, where or when, or how many.
_OTHERS = re.compile(r"\W*(?:who|whose|where|when|why|how many|wer|wessen|wo|wann|qui|ou|quand|chi|dove|quien|donde|wie viele|kto|gdzie)\b")
_BETWEEN = r"of|for|at|in|on|to|from|with|de|du|des|del|della|dell|di|do|da|van|voor|von|vom|fur|bei|zu|zum|zur|pour|para|per|till|av|dla|для"
_AFTER = re.compile(rf"\s*(?:$|[?,.;]|(?:{_BETWEEN})\b)")


def asked(question: str) -> Asked | None:
    """What *question* asks for, where that has a shape; None where it has none, or where the shape's name is no more than mentioned."""
    folded = fold(question)
    if _OTHERS.match(folded):
        return None
    for shape in _SHAPES:
        for match in re.finditer(rf"(?<![\w-])(?:{shape.asked.pattern})(?![\w-])", folded):
            before, after = folded[: match.start()], folded[match.end() :]
            alone = not before.strip() or match[0].endswith(("telefonu", "телефона"))  # what follows is whose it is
            numbered = match[0].endswith(("number", "address", "no", "nr")) and _NUMBER_OF.match(after)
            if (alone or numbered or _AFTER.match(after)) and not re.search(rf"\b(?:{_BETWEEN})\b", before):
                return Asked(shape, frozenset(map(term, WORD.findall(match[0]))))
    return None
