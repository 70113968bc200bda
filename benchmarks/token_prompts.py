"""Short prompts with a known next word and a foil: facts, opposites, copying, names, agreement, context."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A text and what comes next.

    Attributes:
        family: what it asks for.
        text: the prompt.
        answer: the right continuation, as one token.
        foil: a wrong one of the same kind.
    """

    family: str
    text: str
    answer: str
    foil: str


def _pairs(text: str) -> list[tuple[str, str]]:
    """`"France Paris, Italy Rome"` as pairs."""
    return [(left, right) for left, right in (pair.split() for pair in text.split(","))]


CAPITALS = _pairs(
    "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Russia Moscow, Japan Tokyo, Egypt Cairo, Greece Athens, "
    "Austria Vienna, Norway Oslo, Portugal Lisbon, Ireland Dublin, Cuba Havana, Poland Warsaw, England London, "
    "Sweden Stockholm, China Beijing, Turkey Ankara, Hungary Budapest, Kenya Nairobi"
)
LANGUAGES = _pairs(
    "France French, Italy Italian, Spain Spanish, Germany German, Russia Russian, Japan Japanese, China Chinese, "
    "Greece Greek, Portugal Portuguese, Sweden Swedish, Turkey Turkish, Poland Polish, Brazil Portuguese, "
    "Mexico Spanish, Iran Persian, Egypt Arabic"
)
OPPOSITES = _pairs(
    "hot cold, big small, up down, left right, day night, good bad, open closed, black white, happy sad, old young, "
    "fast slow, rich poor, light dark, hard soft, strong weak, wet dry, love hate, war peace, inside outside, "
    "beginning end, tall short, true false, full empty, early late"
)
PLURALS = _pairs("mouse mice, child children, man men, woman women, foot feet, tooth teeth, goose geese, leaf leaves")
PASTS = _pairs(
    "run ran, go went, eat ate, see saw, write wrote, take took, give gave, drink drank, begin began, sing sang, "
    "swim swam, fly flew, know knew, break broke, speak spoke, drive drove"
)
KINDS = _pairs(
    "sparrow bird, salmon fish, rose flower, oak tree, apple fruit, carrot vegetable, hammer tool, violin instrument, "
    "copper metal, eagle bird, banana fruit, tulip flower, trout fish, football sport, tennis sport, beetle insect"
)
NAMES = _pairs("Mary John, Anna Peter, Sarah Tom, Lisa David, Emma James, Kate Paul, Alice Bob, Jane Mark")
GENDERS = _pairs(
    "queen king, mother father, sister brother, aunt uncle, daughter son, actress actor, wife husband, girl boy"
)
THINGS = _pairs("keys key, books book, dogs dog, paintings painting, letters letter, boxes box, flowers flower")
COLOURS = ("red", "blue", "green", "white", "black", "yellow")
LISTS = (
    "apple chair river stone cloud",
    "horse table music paper glass",
    "doctor garden winter bridge coffee",
    "silver window mountain bread ocean",
    "king apple tiger blue seven",
    "house pencil summer train milk",
)
ORDERS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
    "January February March April May June July August",
    "one two three four five six seven eight nine",
    "first second third fourth fifth sixth seventh",
)


def _table(family: str, text: str, pairs: list[tuple[str, str]]) -> Iterator[Prompt]:
    """One prompt per pair; the foil is the answer of the next pair with another one."""
    for index, (given, answer) in enumerate(pairs):
        others = [other for _, other in pairs[index + 1 :] + pairs[:index] if other != answer]
        yield Prompt(family, text.format(given), f" {answer}", f" {others[0]}")


def _facts() -> Iterator[Prompt]:
    yield from _table("capital", "The capital of {} is", CAPITALS)
    yield from _table("capital", "When I visited {} last year, I stayed in its capital,", CAPITALS)
    yield from _table("after a sentence", "The train was late and it rained all day. The capital of {} is", CAPITALS)
    yield from _table("language", "Most people who live in {} speak", LANGUAGES)
    yield from _table("opposite", "The opposite of {} is", OPPOSITES)
    yield from _table("opposite", "The opposite of loud is quiet. The opposite of {} is", OPPOSITES)
    yield from _table("plural", "One dog, two dogs. One {}, two", PLURALS)
    yield from _table("past", "Today I feel, yesterday I felt. Today I {}, yesterday I", PASTS)
    yield from _table("kind", "A {} is a kind of", KINDS)


def _copies() -> Iterator[Prompt]:
    for text in LISTS:
        words = text.split()
        for reach in (1, 2, 3, 4):
            line = f"{' '.join(words)}."
            given = f"{line} {line} {' '.join(words[:reach])}"
            yield Prompt("copying", given, f" {words[reach]}", f" {words[reach - 1]}")
    for text in ORDERS:
        words = text.split()
        for start in range(len(words) - 4):
            given = ", ".join(words[start : start + 4])
            yield Prompt("order", f"{given},", f" {words[start + 4]}", f" {words[start]}")


def _sentences() -> Iterator[Prompt]:
    places = ("store", "park", "school", "beach")
    for index, (first, second) in enumerate(NAMES):
        place, gift = places[index % 4], ("drink", "book", "flower", "letter")[index // 2]
        for one, two in ((first, second), (second, first)):
            text = f"When {one} and {two} went to the {place}, {two} gave a {gift} to"
            yield Prompt("names", text, f" {one}", f" {two}")
    for many, single in THINGS:
        yield Prompt("agreement", f"The cat is here. The cups are here. The {many}", " are", " is")
        yield Prompt("agreement", f"The cat is here. The cups are here. The {single}", " is", " are")
    for her, his in GENDERS:
        yield Prompt("pronoun", f"The {her} was tired after the long day, so", " she", " he")
        yield Prompt("pronoun", f"The {his} was tired after the long day, so", " he", " she")


def _context() -> Iterator[Prompt]:
    for index, (first, second) in enumerate(NAMES):
        one, two = COLOURS[index % 6], COLOURS[(index + 2) % 6]
        (country, here), (_, there) = CAPITALS[index], CAPITALS[index + 8]
        for name in (first, second):
            car = f"{name} has a {one} car. Everybody likes the car of {name}, because its color is"
            yield Prompt("context", car, f" {one}", f" {two}")
            home = f"{name} lives in {here}, the capital of {country}. We took a train to visit {name} in"
            yield Prompt("context", home, f" {here}", f" {there}")


def prompts() -> list[Prompt]:
    """All prompts; a model's own right answers are to be picked from them."""
    makers = (_facts, _copies, _sentences, _context)
    return [prompt for maker in makers for prompt in maker()]
