"""Notes to train a reader on: the templates of reader_notes/ with their slots filled at random, as JSON Lines.

    python tools/reader_notes.py --part train > notes.jsonl

Templates and values are our own writing and describe nobody; so are the lines of general.txt, talk that no note
answers, and the notes of banks/, each file what one person keeps, with the questions of languages/ in other languages.
A question about one note of a bank is put to the notes that the text embedder e5 takes for it, which do not answer.
Each line has text, title, qa and unanswered.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path

import numpy as np

FIRST = """Ada Aldo Amir Anneke Beatrix Bruno Carla Cedric Dagmar Dario Edda Elio Farida Fenna Gideon Greta Hanno Ines
Ivo Jasper Jelena Kaspar Keira Lars Leonie Livia Magnus Malika Matteo Mirjam Nadim Nele Oskar Paula Piet Quentin Rahel
Ravi Rosa Samir Selma Silas Sunniva Tamsin Tariq Theo Ulla Vera Viktor Wanda Willem Yara Yusuf Zeno Zita""".split()
LAST = """Abernathy Bassett Calloway Dempster Eastwick Farrant Goodwin Hollis Iversen Jankowski Kettleby Lindholm Marlowe
Novak Okafor Pemberton Quist Rosetti Sandoval Thackeray Underhill Vasquez Whitlock Yarrow Zeller""".split()
TOWNS = """Aldersey Brackwater Colmere Dunvale Easterham Fennick Glenhurst Harborne Inverlea Kestwick Larkhill Mossgate
Norwell Oakmere Penhallow Redmarsh Stonebeck Thornaby Ulverdale Westray""".split()
STREETS = "Mill Lane|Harbour Road|Tanner Street|Elm Close|Station Road|Chapel Hill|Orchard Way|Quay Street".split("|")
FIRMS = """Arden|Bexley|Corvin|Delmar|Estrel|Fairlie|Gatwell|Hexham|Ingram|Jorvik|Kelmond|Lorrimer|Marchetti|Norling
Ostermann|Pelham|Quillon|Rudd|Severin|Tolman""".replace("\n", "|").split("|")
KINDS = "& Sons|Ltd|Supplies|Partners|Services|Brothers|Works|Trading".split("|")
BRANDS = (
    "Tagmate Veltrix Solano Kestrel Orbiton Hydra Nimbus Pico Arcon Zephyr Duralux Maxim Cobalt Lumo Ferrox".split()
)
COLORS = "red blue green yellow black white grey orange purple brown turquoise silver".split()
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()
PETS = "Biscuit Pepper Momo Tiger Luna Rusty Nougat Socks Bandit Olive Pixel Waffle".split()
SPOKEN = "half past seven|quarter to nine|noon|half past four|eight in the evening|ten to six".split("|")
TALK = 2  # lines of general.txt that go with a note
SIBLINGS = 4  # questions about other notes of a bank that go with a note
# Banks that no reader is trained on: what decides whether an answer is known is fitted on them (fit_known.py).
HELD = "boat body facts flats garden lexicon office stars taxi workshop".split()
_SLOT = re.compile(r"\{([a-z]+)([0-9]?)\}")


def value(kind: str, rng: random.Random) -> str:
    """A value for the slot *kind*."""

    def digits(n: int) -> str:
        return "".join(rng.choice("0123456789") for _ in range(n))

    def letters(n: int) -> str:
        return "".join(rng.choice("ABCDEFGHKLMPRSTVWX") for _ in range(n))

    makers = {
        "name": lambda: rng.choice(FIRST) + (f" {rng.choice(LAST)}" if rng.random() < 0.5 else ""),
        "company": lambda: f"{rng.choice(FIRMS)} {rng.choice(KINDS)}" if rng.random() < 0.6 else rng.choice(FIRMS),
        "town": lambda: rng.choice(TOWNS),
        "street": lambda: rng.choice(STREETS),
        "price": lambda: (
            f"{rng.randint(2, 900)}.{rng.choice(('50', '90', '99', '40', '25', '00'))}"
            if rng.random() < 0.5
            else str(rng.randint(3, 1400))
        ),
        "num": lambda: str(rng.randint(2, 60)),
        "big": lambda: str(rng.randint(100, 9000)),
        "code": lambda: rng.choice(
            (
                f"{letters(2)}-{digits(4)}",
                f"{letters(2)}/{digits(3)}/{digits(2)}",
                f"{letters(1)}-{digits(2)}",
                f"{letters(1)}{digits(3)}",
                f"{digits(4)}-{digits(4)}",
                f"{letters(3)}{digits(1)}-{digits(5)}",
                f"{letters(2)}-{digits(3)}-{digits(4)}",
                digits(5),
            )
        ),
        "phone": lambda: rng.choice((f"01632 960 {digits(3)}", f"0{digits(3)} {digits(6)}", f"555-{digits(4)}")),
        "time": lambda: (
            f"{rng.randint(6, 22)}:{rng.choice(('00', '15', '30', '45'))}"
            if rng.random() < 0.75
            else rng.choice(SPOKEN)
        ),
        "date": lambda: f"{rng.randint(1, 28)} {rng.choice(MONTHS)}",
        "day": lambda: rng.choice(DAYS),
        "month": lambda: rng.choice(MONTHS),
        "year": lambda: str(rng.randint(1952, 2031)),
        "color": lambda: rng.choice(COLORS),
        "version": lambda: ".".join(str(rng.randint(0, 19)) for _ in range(rng.choice((2, 3)))),
        "email": lambda: f"{rng.choice(FIRST).lower()}@{rng.choice(FIRMS).lower()}.example",
        "pet": lambda: rng.choice(PETS),
        "product": lambda: f"{rng.choice(BRANDS)} {rng.choice((str(rng.randint(2, 900)), letters(1) + digits(1)))}",
    }
    return makers[kind]()


def fill(row: dict, rng: random.Random, general: list[str]) -> dict:
    """*row* with its slots filled, the same everywhere; slots of one kind differ. Some *general* talk is unanswered."""
    values: dict[str, str] = {}
    used: set[str] = set()
    for kind, number in _SLOT.findall(json.dumps(row, ensure_ascii=False)):
        while kind + number not in values:
            filling = value(kind, rng)
            if filling not in used:
                values[kind + number] = filling
                used.add(filling)

    def say(text: str) -> str:
        return _SLOT.sub(lambda m: values[m[1] + m[2]], text)

    # In a conversation the reader is given the question that stood on its own, and what was asked last.
    turns = row.get("turns", [])
    first = f"{turns[0]['q']} " if turns else ""
    asked = row.get("qa") or [turns[0], *({**turn, "q": first + turn["q"]} for turn in turns[1:])]
    near = [say(first + question) for question in row["near"]]
    return {
        "text": say(row["text"]),
        "title": say(row["title"]) if row["title"] else None,
        "qa": [{"q": say(qa["q"]), "a": [say(qa["a"])]} for qa in asked],
        "unanswered": near + rng.sample(general, min(TALK, len(general))),
    }


def bank(path: Path, rng: random.Random, general: list[str]) -> list[dict]:
    """The notes of one bank, and for each what it does not answer."""
    from megart.runtime.embedders import E5Small

    embedder = E5Small()
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    other = (path.parents[1] / "languages" / path.name).read_text(encoding="utf-8").splitlines()
    asked_in = {row["id"]: row["qa"] for row in map(json.loads, other)}
    for row in rows:
        row["qa"] += asked_in[row["id"]]
    notes = np.stack([embedder.memory(row["text"], row["title"]) for row in rows])
    strangers: list[list[tuple[float, str]]] = [[] for _ in rows]
    for number, row in enumerate(rows):
        for qa in row["qa"]:
            alike = notes @ np.asarray(embedder.query(qa["q"]))
            alike[number] = -1
            for other in np.argsort(-alike)[:2]:
                strangers[other].append((float(alike[other]), qa["q"]))
    entries = []
    for row, asked in zip(rows, strangers, strict=True):
        nearest = [q for _, q in sorted(asked, reverse=True)[:SIBLINGS]]
        unanswered = row["near"] + nearest + rng.sample(general, min(1, len(general)))
        entries.append(
            {**{key: row[key] for key in ("id", "text", "title", "qa")}, "bank": path.stem, "unanswered": unanswered}
        )
    return entries


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fills", type=int, default=2, help="how often a template with slots is filled")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("train", "held"), help="all but every sixth template, or these")
    parser.add_argument("--templates", type=int, default=9999, help="filled templates, drawn at random")
    parser.add_argument("--notes", type=int, default=9999, help="notes of banks, drawn at random")
    parser.add_argument("--whole", default="", help="templates, such as articles,places, of which nothing is left out")
    parser.add_argument("--questions", type=int, default=99, help="of a note")
    parser.add_argument("--hard", type=int, default=99, help="of these so many in other words or languages, more where others lack")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    folder = Path(__file__).with_name("reader_notes")

    def mine(number: int) -> bool:
        return not args.part or (number % 6 == 5) == (args.part == "held")

    talk = (folder / "general.txt").read_text(encoding="utf-8").splitlines()
    general = [line for number, line in enumerate(talk) if mine(number)]
    rows, whole = [], []
    for path in sorted(folder.glob("*.jsonl")):
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines()):
            if mine(number):
                row = json.loads(line)
                made = [fill(row, rng, general) for _ in range(args.fills if _SLOT.search(line) else 1)]
                (whole if path.stem in args.whole.split(",") else rows).extend(made)
    rows = rng.sample(rows, min(args.templates, len(rows)))
    notes = []
    for path in sorted((folder / "banks").glob("*.jsonl")):
        if not args.part or (path.stem in HELD) == (args.part == "held"):
            notes += bank(path, rng, general)
    rows += rng.sample(notes, min(args.notes, len(notes)))
    for row in whole:
        print(json.dumps(row, ensure_ascii=False))
    for row in rows:
        asked = rng.sample(row["qa"], len(row["qa"]))
        hard = [qa for qa in asked if "lang" in qa or qa.get("kind") == "synonym"]
        easy = [qa for qa in asked if qa not in hard]
        chosen = hard[: max(args.hard, args.questions - len(easy))]
        chosen += easy[: args.questions - len(chosen)]
        print(json.dumps({**row, "qa": chosen[: args.questions]}, ensure_ascii=False))


if __name__ == "__main__":
    main()
