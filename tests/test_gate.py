"""The gate's policy and evidence: what opens, how far, and when nothing does. Words only, no model."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from megart.gate import Candidates, GatePolicy, Index, by_product, decide, partner, read_question, sequence, unit
from megart.gate.evidence import AGAINST, LEAST, WEIGHTS, WORDS_SETTLE, Evidence
from megart.gate.meaning import Vectors
from megart.gate.slips import typos
from megart.gate.words import root, stem, term, term_hash

MEMORIES = [
    ("Morwenna Tregaskis, lighthouse keeper", "Morwenna Tregaskis kept the lighthouse on Gannet Skerry for 34 years."),
    ("Casimir Oudekerk", "The baker Casimir Oudekerk invented the whistling loaf. He sold the patent for 600 francs."),
    ("The Dona Perpetua", "The Dona Perpetua was a cargo ship. She sank in thick fog near Cape Tormel."),
]
COMMON = {"lighthouse": 1e-3, "keep": 1e-2, "sold": 1e-2, "patent": 1e-3, "sank": 1e-3, "ship": 1e-2, "born": 1e-2}


def prior(word: str) -> float:
    return COMMON.get(word.lower(), 0.3 if len(word) < 4 else 2e-5)


def index(memories: list[tuple[str, str]] = MEMORIES, vectors: Vectors | None = None, *, texts: bool = False) -> Index:
    keys = np.full((len(memories), 4), 0.5, np.float16)  # a likeness of 0.4, as between related texts
    return Index(
        [sequence(text, title) for title, text in memories],
        keys,
        lambda rows: [np.array([[1, 0]], np.int8)] * len(rows),
        vectors,
        (lambda row: "\n".join(memories[row])) if texts else lambda _: "",
    )


def reading(text: str, known: Callable[[str], bool] = lambda _: True) -> tuple:
    question = read_question(text, prior, known)
    owner = np.arange(len(question.terms), dtype=np.int32)
    return question, np.full(4, 0.2, np.float32), np.tile(np.array([3, 4], np.int8), (len(owner), 1)), owner


def find(text: str, where: Index | None = None, **options) -> Candidates:
    return (index() if where is None else where).find(*reading(text), **options)


def weigh(text: str, best: int, where: Index | None = None) -> tuple[Evidence, int]:
    """The evidence, and the place of memory *best* among its candidates."""
    found = (index() if where is None else where).evidence(*reading(text))
    assert found is not None
    return found, int(np.flatnonzero(found.rows == best)[0])


def opened(text: str, **options) -> list[int]:
    return [o.index for o in decide(find(text, **options), GatePolicy())]


@pytest.mark.parametrize(
    ("question", "row"),
    [
        ("Where did Morwenna Tregaskis keep the lighthouse?", 0),
        ("who was morwenna tregaskis", 0),
        ("What did Casimir Oudekerk invent?", 1),
        ("Where did the cargo ship Dona Perpetua sink?", 2),
    ],
)
def test_a_question_opens_the_memory_that_holds_its_names(question: str, row: int) -> None:
    assert opened(question) == [row]


def test_candidates_say_what_each_telling_word_of_the_question_counts() -> None:
    telling = find("Where did Morwenna Tregaskis keep the lighthouse?").telling
    words = {word: term_hash(term(word)) for word in ("Morwenna", "Tregaskis", "keep", "lighthouse")}
    assert set(telling) == set(words.values())
    # no memory says "keep"; of the words that one has, the name is rarer elsewhere
    assert telling[words["keep"]] > telling[words["Morwenna"]] > telling[words["lighthouse"]] > 0


@pytest.mark.parametrize(
    "question",
    [
        "Where did Morwenna Pellworth keep the lighthouse?",
        "Where did Imke Tregaskis keep the lighthouse?",
        "What did Lazlo Quarmby invent?",
        "What is the capital of Mongolia?",
        "Hello, how are you?",
        "What is a patent?",
        "It",
        "Where was it, and who was there?",
    ],
)
def test_the_wrong_person_and_small_talk_open_nothing(question: str) -> None:
    assert opened(question) == []


def test_a_question_that_names_two_memories_opens_both_evenly() -> None:
    both = decide(
        find("Did Morwenna Tregaskis of Gannet Skerry know Casimir Oudekerk of the whistling loaf?"), GatePolicy()
    )
    assert {o.index for o in both} == {0, 1}
    assert [o.gate for o in both] == [0.5, 0.5]


@pytest.mark.parametrize(
    "question",
    [
        "Where did Morwenna Tregaskis keep the lighthouse, and what did Casimir Oudekerk invent?",
        "What did Casimir Oudekerk invent, and where did the cargo ship sink in thick fog?",  # the second has no name
    ],
)
def test_a_question_for_two_facts_opens_both(question: str) -> None:
    assert len(opened(question)) == 2


@pytest.mark.parametrize(
    "question",
    [
        "Where did Morwenna Tregaskis keep the lighthouse, and for how many years?",
        "Who sold the patent of the whistling loaf that the baker Casimir Oudekerk invented?",
        "Did the lighthouse keeper Morwenna Tregaskis ever sell a patent?",  # one word of another is not a second half
    ],
)
def test_a_question_about_one_memory_opens_one(question: str) -> None:
    assert len(opened(question)) == 1


def test_the_partner_is_who_explains_most_of_the_rest() -> None:
    present = np.array([[1, 1, 0, 0, 0], [0, 1, 1, 1, 0], [0, 1, 0, 0, 1]], float)
    idf, pairs = np.array([5.0, 5.0, 4.0, 6.0, 8.0]), np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    named, scores = np.array([False, True, False]), np.array([3.0, -40.0, 2.0])
    other, found = partner.features(0, present, idf, pairs, named, scores)
    assert other == 1 and found.tolist() == [1.0, 1.0, 0.8, -1.0, 1.0]  # gain 4 + 6, side by side 4 + 4, far behind
    weights = dict(zip(partner.WEIGHTS, (-1.0, 1.0, 0.5, 0.0, 0.0), strict=True))
    assert partner.needed(found, weights)  # -1 + 1 + 0.4
    assert not partner.needed(found, weights | {"always": -1.5})
    words = np.array([[1, 0, 0, 0], [0, 1, 1, 0], [0, 0, 0, 1]], float)
    pairs = np.array([[1, 2]])
    other, _ = partner.features(0, words, np.array([5.0, 4.0, 4.0, 10.0]), pairs, named, scores)
    assert other == 1  # words side by side outweigh a rarer word alone


def test_the_partner_is_told_by_its_place_among_the_scores_not_among_the_words() -> None:
    where = index()
    where.keys[2] = 2.0  # the states put the ship first, the words the baker
    found = find("What did Casimir Oudekerk invent, and where did the cargo ship sink in thick fog?", where)
    assert found.rows[0] == 2
    assert found.partner is not None and found.rows[found.partner] == 1


@pytest.mark.parametrize(
    ("text", "speak"),
    [
        ("Did Lazlo Quarmby keep the lighthouse on Gannet Skerry?", {"strange_name", "strange_person"}),
        ("Who keeps the lighthouse on Gannet Skerry in Quarmby?", {"strange_name"}),  # one word is no person
        ("Did Morwenna Tregaskis meet Casimir Oudekerk of the whistling loaf in Tormel?", {"other_name", "paired"}),
        ("Did Morwenna Tregaskis meet Casimir Oudekerk?", {"paired"}),  # the best and its complement hold both
    ],
)
def test_names_that_nothing_explains_speak_against_all(text: str, speak: set[str]) -> None:
    evidence, best = weigh(text, 0)
    margins = np.zeros(len(evidence.rows))
    margins[best] = 1
    against = dict(zip(AGAINST, evidence.against(margins), strict=True))
    assert {name for name, value in against.items() if value > 0} == {"always"} | speak
    assert all((AGAINST[name] > 0) == (name == "paired") for name in speak)


def test_among_more_memories_than_a_few_dozen_their_number_speaks_against_all() -> None:
    strangers = [(f"Stranger {i}", f"Stranger {i} owns nothing.") for i in range(197)]
    text = "Where did Morwenna Tregaskis keep the lighthouse?"

    def against(text: str = text, **options) -> tuple[float, float]:
        found = index(MEMORIES + strangers).evidence(*reading(text), **options)
        assert found is not None
        made = dict(zip(AGAINST, found.against(np.zeros(len(found.rows))), strict=True))
        return made["size"], made["nameless"]

    assert AGAINST["size"] < 0 and AGAINST["nameless"] < 0
    assert against() == pytest.approx((math.log(200 / 50), 0))
    assert against("who did keep the lighthouse?") == pytest.approx((math.log(4), math.log(4)))
    assert against(allowed=np.arange(200) < 100)[0] == pytest.approx(math.log(2))  # those in scope count
    assert against(allowed=np.arange(200) < 30)[0] == 0


KNOWN = {"where", "did", "keep", "the", "lighthouse", "what", "invent", "born", "was", "stable", "who"}


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("Where did Mowrenna Trgaskis keep the lighthouse?", 0),  # swapped, left out
        ("What did Casimiir Oudekerp invent?", 1),  # doubled, wrong
        ("where was the dona perpettua", 2),
    ],
)
def test_a_slip_of_the_keyboard_is_read_as_what_the_bank_knows(text: str, row: int) -> None:
    def known(word: str) -> bool:
        return word.lower() in KNOWN

    found = index().find(*reading(text, known))
    assert [o.index for o in decide(found, GatePolicy())] == [row] and found.read_as
    assert decide(index().find(*reading(text)), GatePolicy()) == []  # were the words those of the language


def test_only_unknown_words_of_some_length_are_taken_for_slips() -> None:
    where = index(
        [("Tables", "A table stood beside the Quarmby clock of Quarnby, a fen behind it, Gabdon and Goadon far.")]
    )
    for text, word, meant in [
        ("Who owns the stable?", "stable", "stable"),  # a word of the language
        ("Who owns the quarmby clock?", "quarmby", "quarmby"),  # the bank has it
        ("Who owns the quarby clock?", "quarby", "quarmby"),
        ("Who owns gaodon?", "gaodon", "goadon"),  # letters swapped sooner than one wrong
        ("Who owns the fenn?", "fenn", "fenn"),  # too short to tell
        ("Who owns the quarmbyist?", "quarmbyist", "quarmbyist"),  # further away than one slip
    ]:
        question = read_question(text, prior, lambda word: word.lower() in KNOWN)
        place = [w.lower() for w in question.words].index(word)
        corrected, read_as = where.corrected(question)
        assert corrected.terms[place] == term_hash(term(meant)), text
        assert read_as == ({} if meant == word else {word: meant})


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("Where are the wnter wheels?", {"wnter": "winter"}),  # the word of the memory that holds the rest, not "water"
        ("Which wnter meter is wet?", {"wnter": "water"}),
        ("Is the weened one in the water?", {"weened": "weaned"}),  # the bank says "when", and not "whened"
        ("Who does the repare?", {"repare": "repair"}),  # the bank writes no "repaire"
        ("Where are the wheals?", {"wheals": "wheels"}),
        ("Where is the bottel?", {"bottel": "bottle"}),  # the bank writes "bottles"
        ("What is the miete?", {}),  # nor "niete"; a short word is like too many others
        ("Who repared the thing?", {}),  # no memory has a word one slip away
    ],
)
def test_a_slip_is_read_as_a_word_that_the_bank_writes(text: str, read_as: dict[str, str]) -> None:
    where = index(
        [
            ("Tap", "Turn it off when the water meter is wet."),
            ("Car", "Winter wheels are in the shed."),
            ("Flock", "Weaned lambs went to the Quarry Field."),
            ("Boots", "Sent for repair to Karl, with two bottles. Niet vergeten."),
        ],
        texts=True,
    )
    assert where.corrected(read_question(text, prior, lambda word: word.lower() in {"where", "which", "thing"}))[1] == read_as


def test_slips_are_all_words_one_slip_away() -> None:
    found = typos("ab")
    assert {"ba", "a", "b", "xb", "ax", "xab", "axb", "abx"} <= set(found)
    assert found[0] == "ba" and "ab" not in found and len(found) == len(set(found))


@pytest.mark.parametrize("asked", ["Remind me of everything on {}.", "Tell me all about {} again.", "Recall {}"])
def test_words_that_ask_for_a_memory_are_no_evidence_against_it(asked: str) -> None:
    question = read_question(asked.format("Casimir"), prior)
    assert [word for word, asks in zip(question.words, question.asking) if not asks] == ["Casimir"]


def test_a_partner_is_weighed_by_its_name_and_by_telling_words_only() -> None:
    evidence, best = weigh("Where did Morwenna Tregaskis keep the lighthouse, and was it the Dona Perpetua?", 0)
    other, found = evidence.partner(best, np.zeros(len(evidence.rows)))
    assert evidence.rows[other] == 2
    made = dict(zip(partner.WEIGHTS, found, strict=True))
    mine = [i for i, word in enumerate(evidence.question.words) if word in ("Dona", "Perpetua")]
    assert made["gain"] == pytest.approx(float(evidence.idf[mine].sum()) / 10)  # not by "was", which it also holds
    assert made["named"] == 1
    evidence, best = weigh("Where did Morwenna Tregaskis keep the lighthouse, and what sank in thick fog?", 0)
    assert evidence.partner(best, np.zeros(len(evidence.rows)))[1][-1] == 0


def features(text: str, memory: int) -> dict[str, float]:
    evidence, place = weigh(text, memory)
    return dict(zip(WEIGHTS, evidence.features[place].tolist(), strict=True))


def test_half_a_name_whose_other_half_is_anothers_speaks_against_a_memory() -> None:
    half, whole = (features(f"Where did {who} keep it?", 0) for who in ("Casimir Tregaskis", "Morwenna Tregaskis"))
    assert half["elsewhere"] > 0 == half["broken_name"] and whole["elsewhere"] == 0
    assert WEIGHTS["elsewhere"] < 0


def test_a_question_that_says_little_is_worth_little() -> None:
    evidence, place = weigh("Who sank?", 2)
    said = float(evidence.idf.sum())
    assert said < LEAST == evidence.total
    made = dict(zip(WEIGHTS, evidence.features[place], strict=True))
    assert made["tokens"] == pytest.approx(0.6 * said / LEAST)  # every token is alike by 0.6


def test_words_that_only_ask_weigh_no_more_than_in_the_language() -> None:
    evidence, _ = weigh("Who told Morwenna?", 0)
    asking = evidence.question.asking
    assert evidence.frequency[asking].sum() == 0  # as rare here as a name, and yet
    assert (evidence.idf[asking] <= -np.log(evidence.question.prior[asking]) + 1e-6).all()


def test_what_a_partner_explains_is_no_gap_of_the_first() -> None:
    text = "Did Morwenna Tregaskis know Casimir Oudekerk?"
    evidence, place = weigh(text, 0)
    mine = evidence.present[place] @ evidence.idf
    other = sum(evidence.idf[i] for i, word in enumerate(evidence.question.words) if word in ("Casimir", "Oudekerk"))
    assert features(text, 0)["rest"] == pytest.approx(mine / (evidence.total - other))


def test_a_memory_out_of_scope_never_opens() -> None:
    question = "Where did Morwenna Tregaskis keep the lighthouse?"
    assert opened(question, allowed=np.array([False, True, True])) == []
    assert find(question, allowed=np.zeros(3, bool)).rows.tolist() == []


def test_probabilities_sum_to_one_and_parts_to_the_score() -> None:
    found = find("Where did Morwenna Tregaskis keep the lighthouse?")
    assert found.p.sum() + found.p_none == pytest.approx(1)
    np.testing.assert_allclose(found.parts.sum(axis=1), found.scores)
    assert len(found.names) == found.parts.shape[1]
    assert math.log(found.p[0] / found.p_none) == pytest.approx(found.scores[0])


@pytest.mark.parametrize(
    ("question", "sure"), [("Where did Morwenna Tregaskis keep the lighthouse?", True), ("What happened in the mist?", False)]
)
def test_meaning_counts_as_far_as_words_leave_it_open(question: str, sure: bool) -> None:
    """It speaks for the ship; words, where they know, stay."""
    vectors = Vectors(np.eye(3, dtype=np.float32), "minilm")
    by_words, both = find(question), find(question, index(vectors=vectors), meaning=np.eye(3, dtype=np.float32)[2])
    assert both.alone is not None and both.meant is not None
    assert both.alone.max() == pytest.approx(by_words.scores[0], abs=1e-4) and (by_words.scores[0] > 0) == sure
    left_open = 1 - WORDS_SETTLE / (1 + math.exp(-by_words.scores[0]))
    assert both.rows[0] == (0 if sure else 2) and both.names[-2:] == ("meaning", "against")
    np.testing.assert_allclose(both.parts[:, -2], both.meant * left_open)
    words = both.scores - both.parts[:, -2]
    np.testing.assert_allclose(words, both.alone * (1 - left_open * (1 - vectors.share)))


def test_an_empty_bank_and_an_empty_question_open_nothing() -> None:
    assert find("Where?", index([])).p_none == 1
    assert find("...").rows.size == 0


def test_threshold_beta_and_top_k() -> None:
    found = find("Where did Morwenna Tregaskis keep the lighthouse?")
    assert decide(found, GatePolicy(threshold=2.0)) == []
    assert len(decide(found, GatePolicy(threshold=-1.0, top_k=3, min_gate=0.0))) == 3
    even = decide(found, GatePolicy(beta=0.0, threshold=-1.0, top_k=2, min_gate=0.0))
    assert [o.gate for o in even] == [0.5, 0.5]


def test_the_papers_gate_always_opens_and_sums_to_one() -> None:
    axes = np.eye(4, dtype=np.float32)
    query = 10 * unit(np.array([1.0, 0.98, 0, 0]))
    both = decide(by_product(query, axes), GatePolicy())
    assert [o.index for o in both] == [0, 1]
    assert sum(o.gate for o in both) == pytest.approx(1.0)
    assert [o.index for o in decide(by_product(query, axes, np.array([False, True, True, True])), GatePolicy())] == [1]
    assert by_product(query, np.empty((0, 4), np.float32)).rows.size == 0
    far = by_product(np.full(4, 1e4, np.float32), np.float32(1e4) * np.stack([axes[0], axes[1], -axes[1]]))
    assert far.rows.tolist() == [0, 1, 2] and far.p.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize(
    ("word", "root"), [("cities", "city"), ("kept", "kept"), ("Étienne's".lower(), "étienn"), ("running", "run")]
)
def test_stems(word: str, root: str) -> None:
    assert stem(word) == root


def test_words_of_one_family_share_their_root_and_the_upper_bits_of_their_hash() -> None:
    assert root("negotiation") == root("negotiat") == root("negotiate")
    assert root("water") != root("waste")
    related, itself, other = term_hash("invention"), term_hash("invent"), term_hash("sold")
    assert related >> 12 == itself >> 12 != other >> 12
    assert related != itself


def test_words_have_numbers_of_their_own() -> None:
    """Of 20 000 short words, which are their own roots; in 20 bits some 190 would share one."""
    letters = "abcdfghjklmpqrtuvwxz"
    words = {f"{a}{b}{c}{d}q" for a in letters for b in letters for c in letters[:10] for d in letters[:5]}
    assert len({term_hash(word) for word in words}) == len(words) == 20_000


def test_a_relative_of_a_word_speaks_for_a_memory() -> None:
    texts = [("", "A machine which they invented in the barn."), ("", "A machine which they sold in the barn.")]
    found = find("Whose inventions are the machines in the barn?", index(texts))
    assert found.rows[0] == 0
    parts = dict(zip(found.names, (found.parts[0] - found.parts[1]).tolist()))
    assert parts["related"] > 0


def test_names_are_runs_of_capitals_but_not_the_first_common_word() -> None:
    question = read_question("When was Casimir Oudekerk, born in Brabelgem, married?", prior)
    assert [[question.words[i] for i in name] for name in question.names] == [["Casimir", "Oudekerk"], ["Brabelgem"]]


def test_unit_keeps_a_zero_row() -> None:
    assert np.array_equal(unit(np.zeros((1, 3))), np.zeros((1, 3), np.float32))
