"""Long texts with places whose next word depends on what was said far above: planted facts, and prose as it is."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .answer_contexts import COLORS, JOBS, PEOPLE, ROOMS, THINGS

SIZES = (50, 150, 400, 1000)
PARTS = {50: 50, 150: 24, 400: 22, 1000: 18}
"""About how many parts the context of a text is cut into."""

PEOPLE_TOLD = {50: 2, 150: 3, 400: 4, 1000: 5}
"""Of how many people a planted text says the same kind of fact."""

TAIL = 40
"""Tokens of prose after the context, at most: the places whose next token is asked for are among them."""

QUERIES, LEAST = 2, -1.5
"""Queries of a text, and the least log-probability of their answers."""

FORMS = (
    ("{} works as a{}.", "{} works as a", tuple(f" {job}" for job in JOBS)),
    ("The door of {} is{}.", "The door of {} is", tuple(f" {color}" for color in COLORS)),
    ("{} left the key in the{}.", "{} left the key in the", tuple(f" {room}" for room in ROOMS)),
    ("{} bought a{}.", "{} bought a", tuple(f" {thing}" for thing in THINGS)),
)
"""A fact, how its beginning is repeated at the end of a text, and what may follow."""


OTHER = "python debugger"
"""Source of the text that is put instead of parts; no text is made from it."""


@dataclasses.dataclass(frozen=True)
class Query:
    """The end of a text, which always stays, and what follows it.

    Attributes:
        ids: its tokens, after the context.
        answer: the right next token.
        foil: another one.
        facts: parts of the context that say the answer; empty where nobody planted it.
        like: for a sentence encoder, the tokens of a sentence that the text is compared with.
        unlike: those of another one.
    """

    ids: tuple[int, ...]
    answer: int = 0
    foil: int = 0
    facts: tuple[int, ...] = ()
    like: tuple[int, ...] = ()
    unlike: tuple[int, ...] = ()


@dataclasses.dataclass(frozen=True)
class Text:
    """A context in parts, and queries about it.

    Attributes:
        kind: `"planted"`, `"prose"` or `"similar"`.
        source: where the prose is from.
        size: about how many tokens context and query have.
        start: tokens before the context, which always stay.
        ids: tokens of the context.
        labels: part of each token of the context, from 0 up.
        queries: the queries.
    """

    kind: str
    source: str
    size: int
    start: tuple[int, ...]
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    queries: tuple[Query, ...]

    @property
    def pieces(self) -> list[tuple[int, ...]]:
        """Tokens of each part."""
        groups = itertools.groupby(zip(self.labels, self.ids, strict=True), key=lambda pair: pair[0])
        return [tuple(token for _, token in group) for _, group in groups]

    def row(self, query: Query) -> tuple[int, ...]:
        """The whole text of a query."""
        return (*self.start, *self.ids, *query.ids)


@functools.cache
def paragraphs() -> tuple[tuple[str, list[str]], ...]:
    """Plain paragraphs of the language reference of Python and of the data sets of scikit-learn, by source."""
    from pydoc_data.topics import topics

    import sklearn.datasets

    texts = {f"python {name}": text for name, text in topics.items()}
    folder = Path(sklearn.datasets.__file__).parent / "descr"
    texts |= {f"sklearn {path.stem}": path.read_text() for path in folder.glob("*.rst")}
    every = []
    for name in sorted(texts):
        found = (" ".join(part.split()) for part in re.split(r"\n\s*\n", texts[name]))
        plain = [
            part
            for part in found
            if re.match(r"[A-Z]", part) and part.isascii() and part[-1] == "." and len(part.split()) > 12
        ]
        plain = [part for part in plain if not re.search(r"[<>{}|`\[\]=_#~^]|http|::|\*\*|\.\. ", part)]
        if plain:
            every.append((name, plain))
    return tuple(every)


def sources() -> list[tuple[str, list[str]]]:
    """The paragraphs that texts are made from."""
    return [(name, parts) for name, parts in paragraphs() if name != OTHER]


def cut(texts: list[str], count: int) -> list[int]:
    """Part of each token: single tokens, or runs of a size that end with a sentence where one ends soon, else a word.

    Args:
        texts: what each token reads.
        count: about how many parts.
    """
    size = len(texts) / count
    if size < 2:
        return list(range(len(texts)))
    labels, begun = [], 0
    for place, text in enumerate(texts):
        labels.append(labels[-1] + (place == begun) if labels else 0)
        long = place + 1 - begun
        after = texts[place + 1 : place + 2]
        word = not after or not after[0][:1].isalnum()
        sentence = text.rstrip().endswith((".", "?", "!", ":")) or "\n" in text
        if (sentence and long >= 0.7 * size) or (word and long >= (1.0 if size < 8 else 1.6) * size):
            begun = place + 1
    return labels


def planted(model: Any, size: int, seed: int) -> Text | None:
    """Facts about some people at random places of prose; None where no query is answered rightly."""
    rng, tokenizer = random.Random(f"{size} {seed}"), model.tokenizer
    fact, ask, values = FORMS[seed % len(FORMS)]
    count = PEOPLE_TOLD[size]
    people, answers = rng.sample(PEOPLE, count), rng.sample(values, count)
    told = [fact.format(name, value) for name, value in zip(people, answers, strict=True)]
    if size >= 400:
        told.append(f"As you know, {told[0]}")  # said twice: either is enough
    name, body = rng.choice(sources())
    lines = [line for part in body for line in re.split(r"(?<=[.]) (?=[A-Z])", part)]
    begin = rng.randrange(len(lines))
    lines, left = lines[begin:] + lines[:begin], size - 10 - sum(len(read(tokenizer, line)) for line in told)
    prose: list[str] = []
    for line in itertools.cycle(lines):
        length = len(read(tokenizer, f" {line}"))
        if left < length:
            words = line.split()
            prose += [" ".join(words[: max(0, left - 2)]).rstrip(".,;:") + "."] if left > 5 else []
            break
        prose, left = [*prose, line], left - length
        if len(prose) > 4 * len(lines):
            return None
    places = sorted(rng.choices(range(len(prose) + 1), k=len(told)))
    order = rng.sample(range(len(told)), len(told))
    mixed = [(line, -1) for line in prose]
    for place, who in reversed(list(zip(places, order, strict=True))):
        mixed.insert(place, (told[who], who))
    pieces = [(read(tokenizer, (" " if k else "") + line), who) for k, (line, who) in enumerate(mixed)]
    ids = [token for piece, _ in pieces for token in piece]
    owner = [who for piece, who in pieces for _ in piece]
    labels = cut([tokenizer.decode([token]) for token in ids], PARTS[size])
    queries = []
    for who, (person, answer) in enumerate(zip(people, answers, strict=True)):
        own = {who, count} if who == 0 else {who}
        parts = tuple(sorted({label for label, by in zip(labels, owner, strict=True) if by in own}))
        query = read(tokenizer, "\n" + ask.format(person))
        right, wrong = (read(tokenizer, text)[0] for text in (answer, answers[(who + 1) % count]))
        queries.append(Query(tuple(query), right, wrong, parts))
    text = Text("planted", name, size, model.begin, tuple(ids), tuple(labels), tuple(queries))
    whole, alone = (model.ask(text, [(*text.start, *context)])[0] for context in (ids, []))
    return checked(text, list(whole), list(alone))


def prose(model: Any, size: int, seed: int) -> Text | None:
    """Prose as it is, where the next word is known from the context and not from the last tokens alone; else None."""
    rng, tokenizer = random.Random(f"prose {size} {seed}"), model.tokenizer
    start, body = model.begin, sources()
    ids: list[int] = []
    while len(ids) < size + 4:
        name, parts = rng.choice(body)
        first = rng.randrange(len(parts))
        ids = read(tokenizer, "\n".join(parts[first:] + parts[:first]))
    tail = min(TAIL, size // 3)
    context, rest = ids[: size - tail], ids[size - tail : size + 1]
    logits, alone = (model.next([*start, *before, *rest], len(rest) + 1) for before in (context, []))
    queries, both = [], []
    for place in range(4, len(rest)):  # row `place` of the logits is after rest[:place]
        answer, foil = rest[place], int(alone[place].argmax())
        word = tokenizer.decode([answer]).strip()
        if answer != foil and len(word) > 1 and word.isalpha():
            queries.append(Query(tuple(rest[:place]), answer, foil))
            rows = logits[place], alone[place]
            both.append([torch.stack([one[answer], one[foil], one.logsumexp(0)]) for one in rows])
    labels = cut([tokenizer.decode([token]) for token in context], PARTS[size])
    text = Text("prose", name, size, start, tuple(context), tuple(labels), tuple(queries))
    return checked(text, *zip(*both, strict=True)) if queries else None


def checked(text: Text, whole: Sequence[torch.Tensor], alone: Sequence[torch.Tensor]) -> Text | None:
    """Keep the queries that are answered rightly and need the context most; None without any.

    Args:
        text: its queries are candidates.
        whole: scores with the context, one `(3,)` per query.
        alone: scores without the context.
    """
    gains = {}
    for query, (right, wrong, total), own in zip(text.queries, whole, alone, strict=True):
        gain = float(right - wrong - own[0] + own[1])
        if right - wrong > 1.0 and gain > 1.0 and right - total > LEAST:
            gains[query] = gain
    best = sorted(gains, key=gains.__getitem__, reverse=True)[:QUERIES]
    return dataclasses.replace(text, queries=tuple(best)) if best else None


def read(tokenizer: Any, text: str) -> list[int]:
    """The tokens of a text, without those that a tokenizer adds."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def pool(tokenizer: Any) -> list[int]:
    """Tokens of another text, to put instead of a part: see `OTHER`."""
    return read(tokenizer, "\n".join(part for name, parts in paragraphs() if name == OTHER for part in parts))


def similar(model: Any, size: int, seed: int) -> Text | None:
    """Passages of three sources, and for two of these a sentence that follows there; None where one is too short."""
    rng, tokenizer, length = random.Random(f"similar {size} {seed}"), model.tokenizer, size // 3
    names, passages, after = list[str](), list[list[int]](), list[tuple[int, ...]]()
    for name, parts in rng.sample(sources(), len(sources())):
        lines = [line for part in parts for line in re.split(r"(?<=[.]) (?=[A-Z])", part)]
        lines, own = lines[rng.randrange(len(lines)) :], list[int]()
        while len(own) < length and len(lines) > 1:
            own += read(tokenizer, lines.pop(0))
        if len(own) >= length:
            names.append(name)
            passages.append(own[:length])
            after.append((*model.begin, *read(tokenizer, lines[0]), *model.end))
        if len(names) == 4:
            break
    else:
        return None
    ids = [token for passage in passages[:3] for token in passage]
    labels = cut([tokenizer.decode([token]) for token in ids], PARTS[size])
    queries = []
    for who in range(QUERIES):
        facts = {label for place, label in enumerate(labels) if place // length == who}
        queries.append(Query(model.end, facts=tuple(sorted(facts)), like=after[who], unlike=after[3]))
    name = " and ".join(names[:3])
    return Text("similar", name, size, model.begin, tuple(ids), tuple(labels), tuple(queries))


MAKERS: dict[str, Callable[[Any, int, int], Text | None]] = {"planted": planted, "prose": prose, "similar": similar}
