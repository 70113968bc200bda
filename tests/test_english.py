"""Keep awkward words and British spelling out of pages, notebooks, docstrings, comments and messages.

`python tests/test_english.py [--names] [path ...]` prints what is found, by file and line.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCANNED = ("README.md", "CONTRIBUTING.md", "docs", "notebooks", "layerlens")

NOT_YET: tuple[str, ...] = ()
"""Files and folders that are still to be cleaned; the command line reports them all the same."""

WORDS = {
    r"told": "known, determined, given, distinguished",
    r"tell(?:s|ing)? (?:\w+ ){0,4}apart": "distinguish",
    r"stands(?! for| out)|stood|standing|stand(?!-| for| out)": "is, remains, appears (stand for is fine)",
    r"dear|dearer|dearest|dearly": "expensive, slow, costly",
    r"mend|mends|mended|mending": "fix, repair",
    r"anew": "again",
    r"likewise": "also, in the same way",
    r"kin": "related, similar",
    r"(?-i:[Ff]ilms?)": "video",
    r"(?<!there\s)(?:is|are|was|were|be|been) no (?!(?:longer|more|less|larger|smaller|better|worse|higher|lower|"
    r"greater|slower|faster|shorter)\b)\w+": "is not a, has no",
    r"in the place of|in place of": "instead of",
    r"the same of": "the same for",
    r"ma(?:ke|kes|de|king) (?:it|them|this|these|\w+ \w+)? ?again": "reproduce, rerun",
    r"(?:go|goes|went|going|gone) on(?! to\b)": "continue",
    r"g[ia]ves? back|given back|giving back": "return, restore",
    r"laid over|lay over|lays over": "overlaid on, drawn on",
    r"beside": "next to, alongside, compared with",
    r"(?:^|[.;:] )(?:that|those) of(?= (?:the|a|an|all|each|every|its|this)\b)": "a noun phrase with its noun",
    r"^\*{0,2}\w+: of\b": "an argument is a noun phrase: 'seed of the noise'",
}
"""What is not written -> what to write; a space matches any white space, upper and lower case match alike."""

STEMS = """
    binaris capitalis categoris characteris criticis crystallis customis diagonalis discretis equalis factoris
    finalis formalis generalis harmonis idealis initialis linearis localis marginalis materialis maximis memoris
    minimis modularis neutralis normalis organis orthogonalis parallelis parametris penalis personalis prioritis
    randomis rasteris recognis regularis scrutinis serialis specialis stabilis standardis summaris symmetris
    synchronis tokenis utilis vectoris visualis
""".split()
BRITISH = {
    r"\w*colour\w*": "color",
    r"(?-i:grey\w*|Grey(?!s\b)\w*)": "gray",
    r"centre|centres|centred|centring|epicentre": "center",
    r"\w*behaviour\w*": "behavior",
    r"neighbour\w*": "neighbor",
    r"favour\w*|honour\w*|flavour\w*|rigour|vapour|labour|humour|endeavour\w*|harbour|armour|tumour\w*": "-or",
    rf"(?:un|re|de|pre)?(?:{'|'.join(STEMS)})(?:e|ed|es|er|ers|ing|ation|ations|able)": "-ize",
    r"optimis(?:e|ed|es|er|ers|ing|ation|ations)|quantis(?:e|ed|es|er|ing|ation)": "-ize",
    r"realis(?:e|ed|es|ing|ation|ations)|emphasis(?:e|ed|ing)|synthesis(?:e|ed|ing)|hypothesis(?:e|ed|ing)": "-ize",
    r"analyse|analysed|analysing|analyser|analysers|catalyse|paralyse": "analyze",
    r"(?:un)?labelled|labelling|modelled|modelling|signalled|signalling|travell\w+|cancelled|cancelling|levelled|"
    r"channelled|tunnelled|totalled|marshalled|marshalling|fuelled|focuss\w+": "one consonant: labeled, modeling",
    r"artefacts?|fibres?|metres?|\w+metres|litres?|licences?|defence|offence": "artifact, fiber, meter",
    r"judgements?|acknowledgements?|programmes?|sceptic\w*|ageing|mould|catalogues?|analogues?": "judgment, program",
    r"learnt|spelt|misspelt|burnt|dreamt|leant|leapt": "learned, spelled",
    r"whilst|amongst|fulfil|enrol|instalment": "while, among, fulfill",
}
"""British spelling -> the American one."""

NAMES = {
    r"told|handed_on|aside|whose|talks|deliver|settled|pulled|hits|seat|seats|shelves|shelf|anew|kin|dearest|mend|beside|"
    r"stands|riddle|alike|verdict": "a name that explains itself",
}
"""Words in names of functions, classes, arguments and variables that explain nothing, for `--names`."""

ALLOWED: list[tuple[str, str, str]] = [
    (r"layerlens/deprecated\.py", r"centred=|told=", "old names of modules"),
    (r"layerlens/plotting/(plot|style)\.py", r"colours|COLOURS", "an old name that is still accepted"),
    (r"layerlens/results/reports/leaderboard\.py", r"centre", "an old name that is still accepted"),
]
"""(file, text around the finding, why it may stay)."""


def compiled(table: dict[str, str]) -> list[tuple[re.Pattern[str], str]]:
    """The patterns of a table, whole words only."""
    return [
        (re.compile(rf"(?<![\w-])(?:{left.replace(' ', chr(92) + 's+')})(?![\w-])", re.I | re.M), right)
        if not left.startswith(("(?:^", "^"))
        else (re.compile(left, re.I | re.M), right)
        for left, right in table.items()
    ]


PROSE = compiled({**WORDS, **BRITISH})


def blank(match: re.Match[str]) -> str:
    """White space instead of what is not prose, so that lines keep their numbers."""
    return re.sub(r"[^\n]", " ", match[0]) if "\n" in match[0] else "`" * len(match[0])


def without_code(text: str) -> str:
    """The text without indentation, inline code and addresses."""
    return re.sub(r"`[^`\n]+`|\]\([^)\s]+\)|https?://\S+", blank, re.sub(r"\n[ \t]+", "\n", text))


def markdown(text: str) -> Iterator[tuple[int, str]]:
    """The prose of a page, and the comments and strings of its Python blocks, each with its first line."""
    for block in re.finditer(r"```python\n(.*?)```", text, flags=re.S):
        first = text.count("\n", 0, block.start(1))
        for line, part in python(block[1]):
            yield first + line, part
    yield 1, without_code(re.sub(r"^(```|~~~).*?^\1", blank, text, flags=re.S | re.M))


def python(text: str) -> Iterator[tuple[int, str]]:
    """The comments (joined where they follow each other) and strings of a program, each with its first line."""
    for node in outer_strings(ast.parse(text)):
        pieces = node.values if isinstance(node, ast.JoinedStr) else [node]
        yield (
            node.lineno,
            without_code(
                "".join(
                    str(getattr(piece, "value", "")) if isinstance(piece, ast.Constant) else "_" for piece in pieces
                )
            ),
        )
    run: list[str] = []
    first, last = 0, -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != last + 1:
            if run:
                yield first, without_code("\n".join(run))
            run, first = [], token.start[0]
        last = token.start[0]
        run.append(token.string.lstrip("# "))
    if run:
        yield first, without_code("\n".join(run))


def outer_strings(node: ast.AST) -> Iterator[ast.Constant | ast.JoinedStr]:
    """The string literals of a program; an f-string is one, the strings in its fields are others."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.JoinedStr):
            yield child
            for field in child.values:
                if isinstance(field, ast.FormattedValue):
                    yield from outer_strings(field)
        elif isinstance(child, ast.Constant):
            if isinstance(child.value, str):
                yield child
        else:
            yield from outer_strings(child)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """What of a file is prose."""
    text = path.read_text(encoding="utf-8")
    yield from markdown(text) if path.suffix == ".md" else python(text)


def findings(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, text and advice of everything in a file that is on the list."""
    name = path.resolve().relative_to(ROOT).as_posix() if path.resolve().is_relative_to(ROOT) else str(path)
    for first, text in prose(path):
        for pattern, advice in PROSE:
            for match in pattern.finditer(text):
                around = text[max(0, match.start() - 40) : match.end() + 40]
                if any(re.fullmatch(file, name) and re.search(allowed, around) for file, allowed, _ in ALLOWED):
                    continue
                yield first + text.count("\n", 0, match.start()), " ".join(match[0].split()), advice


def odd_names(path: Path) -> Iterator[tuple[int, str, str]]:
    """Line, name and advice of names in a program that explain nothing, or are spelled the British way."""
    british = compiled(BRITISH)
    riddles = [(re.compile(rf"(?:^|_)(?:{left})(?:_|$)"), right) for left, right in NAMES.items()]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.arg):
            name = node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        else:
            continue
        for pattern, advice in riddles:
            if pattern.search(name):
                yield node.lineno, name, advice
        for pattern, advice in british:
            if pattern.search(name.replace("_", " ")):
                yield node.lineno, name, advice


def files(paths: list[Path]) -> list[Path]:
    """The pages and programs at or below some paths."""
    below = [sorted(path.rglob("*")) if path.is_dir() else [path] for path in paths if path.exists()]
    return [path for group in below for path in group if path.suffix in (".md", ".py", ".pyi") and path.is_file()]


def guarded(path: Path) -> bool:
    """Whether a file is still to be cleaned."""
    parts = path.relative_to(ROOT).as_posix()
    return any(parts == known or parts.startswith(f"{known}/") for known in NOT_YET)


def test_the_words_on_the_list_are_not_written():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text!r} -> {advice}"
        for path in files([ROOT / name for name in SCANNED])
        if not guarded(path)
        for line, text, advice in findings(path)
    ]
    assert not found, "\n".join(found)


BAD = """
The seed is told by the caller | it stands there | the dearest layer | mend it | do it anew | likewise | its kin |
films of cats | this is no file | in the place of a | in place of b | the same of an error | to make it again |
it goes on | it gives back | laid over the image | beside the map | colour | greys | centred | normalised |
the behaviour | neighbouring | analysed | labelled | misspelt | tell two layers apart | That of the main tensor.
"""
GOOD = """
what x stands for | amend | kind | there is no layer | it is no longer | no larger | analyses | Greys | noise |
otherwise | precise | `colour` | [a](colour.md) | recommend | the stand-in | goes on to show | synthesis |
the main tensor | besides
"""


def flat(text: str) -> list[str]:
    """The phrases of a table."""
    return [phrase.strip() for phrase in " ".join(text.split()).split("|")]


@pytest.mark.parametrize("phrase", flat(BAD))
def test_what_is_on_the_list_is_found(phrase, tmp_path):
    (tmp_path / "page.md").write_text(f"A line.\n\n{phrase}\n")
    (tmp_path / "module.py").write_text(f'"""A line.\n\n{phrase}\n"""\n')
    for name in ("page.md", "module.py"):
        found = list(findings(tmp_path / name))
        assert len(found) == 1 and found[0][0] == 3, (name, found)


@pytest.mark.parametrize("phrase", flat(GOOD))
def test_good_english_is_not_found(phrase, tmp_path):
    (tmp_path / "page.md").write_text(f"{phrase}\n")
    assert not list(findings(tmp_path / "page.md"))


def test_comments_strings_and_f_strings_are_read_and_code_is_not(tmp_path):
    (tmp_path / "module.py").write_text(
        'told = 1  # this is\n# no file\n\ntext = f"{told} is" f" told {dict(a=\'the dearest\')}"\n'
    )
    assert [text for _, text, _ in findings(tmp_path / "module.py")] == ["told", "dearest", "is no file"]


if __name__ == "__main__":
    names = "--names" in sys.argv
    given = [Path(text) for text in sys.argv[1:] if not text.startswith("--")] or [ROOT / name for name in SCANNED]
    count = 0
    for path in files(given):
        here = [*findings(path), *(odd_names(path) if names and path.suffix == ".py" else ())]
        for line, text, advice in sorted(here):
            print(f"{path}:{line}: {text!r} -> {advice}")
        count += len(here)
    print(f"{count} findings")
    sys.exit(bool(count))
