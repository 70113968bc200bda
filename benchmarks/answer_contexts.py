"""Contexts with questions: invented facts with decoys, from templates, and documentation from this machine."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import inspect
import random
import re
from collections.abc import Callable, Iterator
from typing import Any

PEOPLE = ("Mira", "Tobin", "Elsa", "Karim", "Yuna", "Pavel", "Dora", "Hugo", "Lena", "Omar", "Nils", "Freya", "Ivo")
TOWNS = ("Velmar", "Ostrin", "Kalder", "Brintal", "Sorvik", "Tarnow Hill", "Luzern Bay", "Pellworth", "Dunmar", "Askel")
JOBS = ("baker", "pilot", "nurse", "painter", "judge", "farmer", "teacher", "plumber", "singer", "carpenter")
ANIMALS = ("a parrot", "a grey cat", "two goats", "a tortoise", "a black dog", "a white horse", "a rabbit", "nine bees")
THINGS = ("lamp", "kettle", "violin", "telescope", "ladder", "clock", "mirror", "suitcase", "compass", "drum")
COLORS = ("red", "green", "blue", "yellow", "white", "purple", "pink", "brown", "silver", "black")
ROOMS = ("kitchen", "attic", "garage", "cellar", "library", "garden", "hall", "bathroom")
FOODS = ("pears", "onions", "eggs", "plums", "lemons", "carrots", "walnuts", "radishes", "figs", "leeks")
FILLERS = (
    "The road to the harbor was closed for a week.",
    "It rained on most days of that spring.",
    "A new bridge is planned for next year.",
    "The local paper printed a long story about it.",
    "Most visitors arrive by train.",
    "The market opens at eight in the morning.",
    "Nobody remembers who built the old mill.",
    "The winter was unusually mild.",
    "A small museum shows old fishing boats.",
    "The school bell rings twice a day.",
    "Tickets are sold at the station.",
    "The river is low in August.",
    "Everyone agreed that the soup was excellent.",
    "The choir practices on Thursdays.",
)


@dataclasses.dataclass(frozen=True)
class Context:
    """A context in sentences, a question and its answer.

    Attributes:
        kind: name of the template.
        sources: the sentences, rows or items; each begins with the space or line break before it.
        question: what is asked.
        answer: the true answer, as the model is made to say it.
        key: what an answer must contain to be true; empty if no one can say by a word.
    """

    kind: str
    sources: tuple[str, ...]
    question: str
    answer: str
    key: str


Template = Callable[[random.Random], Context]


def _mixed(rng: random.Random, told: list[str], decoys: list[str], size: int, separator: str = " ") -> tuple[str, ...]:
    """The sentences in their order, with decoys and fillers between them at random, `size` in all."""
    others = (decoys + rng.sample(FILLERS, len(FILLERS)))[: max(0, size - len(told))]
    rng.shuffle(others)
    places = set(rng.sample(range(len(told) + len(others)), len(told)))
    lines, rest = iter(told), iter(others)
    return tuple(separator + next(lines if place in places else rest) for place in range(len(told) + len(others)))


def fact(rng: random.Random) -> Context:
    """One sentence holds the answer; others say the same of other people."""
    people = rng.sample(PEOPLE, 6)
    towns, jobs = rng.sample(TOWNS, 6), rng.sample(JOBS, 6)
    decoys = [f"{name} works as a {job}." for name, job in zip(people[1:4], jobs[1:4], strict=True)]
    decoys += [f"{name} lives in {town}." for name, town in zip(people[:4], towns[:4], strict=True)]
    told = [f"{people[0]} works as a {jobs[0]}."]
    sources = _mixed(rng, told, decoys, rng.randint(6, 12))
    return Context("fact", sources, f"What is the job of {people[0]}?", f"{people[0]} is a {jobs[0]}.", jobs[0])


def place(rng: random.Random) -> Context:
    """A property of an invented town, with other towns as decoys."""
    towns, colors, numbers = rng.sample(TOWNS, 4), rng.sample(COLORS, 4), rng.sample(range(12, 97), 4)
    decoys = [f"The church of {town} has a {color} door." for town, color in zip(towns[1:], colors[1:], strict=True)]
    decoys += [f"{town} has {number} houses." for town, number in zip(towns, numbers, strict=True)]
    told = [f"The church of {towns[0]} has a {colors[0]} door."]
    sources = _mixed(rng, told, decoys, rng.randint(5, 10))
    question = f"What color is the door of the church of {towns[0]}?"
    return Context("place", sources, question, f"The door is {colors[0]}.", colors[0])


def contradiction(rng: random.Random) -> Context:
    """Two sentences disagree; the later one corrects the earlier."""
    name, other = rng.sample(PEOPLE, 2)
    old, new, third = rng.sample(TOWNS, 3)
    told = [f"{name} was born in {old}, says the first register.", f"In fact {name} was born in {new}."]
    decoys = [f"{other} was born in {third}.", f"{name} studied in {third}."]
    sources = _mixed(rng, told, decoys, rng.randint(5, 9))
    return Context("contradiction", sources, f"Where was {name} born?", f"{name} was born in {new}.", new)


def two_steps(rng: random.Random) -> Context:
    """Two sentences are needed together."""
    people, things, rooms = rng.sample(PEOPLE, 4), rng.sample(THINGS, 4), rng.sample(ROOMS, 4)
    told = [f"{people[0]} owns the {things[0]}.", f"The {things[0]} is in the {rooms[0]}."]
    decoys = [f"{name} owns the {thing}." for name, thing in zip(people[1:3], things[1:3], strict=True)]
    decoys += [f"The {thing} is in the {room}." for thing, room in zip(things[1:], rooms[1:], strict=True)]
    sources = _mixed(rng, told, decoys, rng.randint(6, 12))
    question = f"In which room is the thing that {people[0]} owns?"
    return Context("two steps", sources, question, f"It is in the {rooms[0]}.", rooms[0])


def moves(rng: random.Random) -> Context:
    """An object is moved several times; the last move decides."""
    people, rooms, (thing, decoy) = rng.sample(PEOPLE, 4), rng.sample(ROOMS, 4), rng.sample(THINGS, 2)
    told = [f"{name} put the {thing} in the {room}." for name, room in zip(people[:3], rooms[:3], strict=True)]
    sources = _mixed(rng, told, [f"{people[3]} put the {decoy} in the {rooms[3]}."], rng.randint(6, 9))
    question = f"Where is the {thing} now?"
    return Context("moves", sources, question, f"The {thing} is in the {rooms[2]}.", rooms[2])


def twice(rng: random.Random) -> Context:
    """The answer is said twice, in two ways; either is enough."""
    people, animals = rng.sample(PEOPLE, 4), rng.sample(ANIMALS, 4)
    told = [f"{people[0]} keeps {animals[0]}.", f"Last year {people[0]} bought {animals[0]}."]
    decoys = [f"{name} keeps {animal}." for name, animal in zip(people[1:], animals[1:], strict=True)]
    sources = _mixed(rng, told, decoys, rng.randint(6, 10))
    key = animals[0].split()[-1]
    return Context("twice", sources, f"What does {people[0]} keep?", f"{people[0]} keeps {animals[0]}.", key)


def listed(rng: random.Random) -> Context:
    """A list of who brought what."""
    size = rng.randint(6, 12)
    people = rng.sample(PEOPLE, size)
    foods = [rng.choice(FOODS) for _ in people]
    counts = rng.sample(range(2, 40), size)
    lines = [f"\n- {name}: {count} {food}" for name, count, food in zip(people, counts, foods, strict=True)]
    chosen = rng.randrange(size)
    said = f"{counts[chosen]} {foods[chosen]}"
    return Context("list", tuple(lines), f"What did {people[chosen]} bring?", f"{people[chosen]} brought {said}.", said)


def table(rng: random.Random) -> Context:
    """A table as text, its head being a source too."""
    size = rng.randint(5, 9)
    towns = rng.sample(TOWNS, size)
    rows = [(town, rng.choice(COLORS), str(rng.randint(10, 99))) for town in towns]
    lines = ["\n| town | flag | boats |", *(f"\n| {town} | {color} | {boats} |" for town, color, boats in rows)]
    town, color, boats = rng.choice(rows)
    if rng.random() < 0.5:
        said = f"{town} has {boats} boats."
        return Context("table", tuple(lines), f"How many boats does {town} have?", said, boats)
    return Context("table", tuple(lines), f"What color is the flag of {town}?", f"The flag is {color}.", color)


def missing(rng: random.Random) -> Context:
    """The context does not say: what a model answers all the same is an invention."""
    people, towns, jobs = rng.sample(PEOPLE, 5), rng.sample(TOWNS, 5), rng.sample(JOBS, 5)
    decoys = [f"{name} lives in {town}." for name, town in zip(people[1:], towns[1:], strict=True)]
    decoys += [f"{name} works as a {job}." for name, job in zip(people, jobs, strict=True)]
    sources = _mixed(rng, [f"{people[0]} was late again."], decoys, rng.randint(6, 10))
    return Context("missing", sources, f"Where does {people[0]} live?", "The text does not say.", "not")


def many(rng: random.Random) -> Context:
    """A long context, 15 to 25 sentences, with one that matters."""
    people, things, colors = rng.sample(PEOPLE, 9), rng.sample(THINGS, 9), rng.sample(COLORS, 9)
    told = [f"{people[0]} has a {colors[0]} {things[0]}."]
    decoys = [f"{a} has a {b} {c}." for a, b, c in zip(people[1:], colors[1:], things[1:], strict=True)]
    decoys += [f"{a} lost a {c}." for a, c in zip(people[:5], things[4:9], strict=True)]
    sources = _mixed(rng, told, decoys, rng.randint(15, 25))
    question = f"What color is the {things[0]} of {people[0]}?"
    return Context("many", sources, question, f"The {things[0]} is {colors[0]}.", colors[0])


TEMPLATES: tuple[Template, ...] = (
    fact,
    place,
    contradiction,
    two_steps,
    moves,
    twice,
    listed,
    table,
    missing,
    many,
)

MODULES = "heapq argparse difflib shelve csv timeit doctest sched"
"""Modules of the standard library, as their own documentation describes them."""

PACKAGES = "captum matplotlib pydantic PyWavelets ruff scipy torch jedi pillow beautifulsoup4 skorch rich"
"""Packages installed with the project, as their README describes them."""


def _sentences(text: str) -> list[str]:
    """The plain sentences of a text with markup, eight at most."""
    paragraphs = (" ".join(part.split()) for part in re.split(r"\n\s*\n", text.split(">>>")[0]))
    plain = (
        part for part in paragraphs if re.match(r"[A-Z]", part) and not re.search(r"[<>{}|`\[\]*=_#]|http|::", part)
    )
    found = (line for part in plain for line in re.split(r"(?<=[.!?]) (?=[A-Z])", part))
    return [line for line in found if 4 <= len(line.split()) <= 30 and line[-1] in ".!?" and line.isascii()][:8]


def described() -> Iterator[tuple[str, str, str]]:
    """Kind, description and summary of the modules and packages."""
    for name in MODULES.split():
        summary, _, text = (inspect.getdoc(importlib.import_module(name)) or "").partition("\n\n")
        yield "documentation", text, " ".join(summary.split())
    for name in PACKAGES.split():
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            data: Any = importlib.metadata.metadata(name)
            yield "readme", str(data.get("Description") or data.get_payload()), data["Summary"]


def real_texts() -> Iterator[Context]:
    """Texts that people wrote, to be summarized; the summary is theirs too."""
    for kind, text, summary in described():
        sentences = _sentences(text)
        if len(sentences) >= 5 and 3 <= len(summary.split()) <= 20:
            sources = tuple(f" {line}" for line in sentences)
            yield Context(kind, sources, "Summarize the text in one short sentence.", summary, "")


def contexts(each: int = 9, seed: int = 0) -> list[Context]:
    """Every kind in turn, `each` contexts a template, then the real texts."""
    found = [template(random.Random(f"{seed} {template.__name__} {k}")) for k in range(each) for template in TEMPLATES]
    return found + list(real_texts())
