"""The pages of trained models run as they stand, and print what they say."""

import pathlib
import re
import sys

import pytest

from tests import real_models
from tests.test_extend import registries  # noqa: F401 - a page may add a method or a figure

CAPTUM = ("ignore:Input Tensor 0 did not already require gradients", "ignore:.*Setting forward, backward hooks")
ROUNDING = "ignore:.*the ledger does not close, its residual is .*e-05 of"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", ROUNDING, *CAPTUM),
]

DOCS = pathlib.Path(__file__).parents[2] / "docs"
NUMBER = re.compile(r"[-+]?\d+\.\d+")
MOST_BYTES = 200_000

PAGES = {
    "checks": 2,
    "what-to-believe": 1,
    "relevance": 9,
    "language-models": 2,
    "diffusion": 4,
    "generation": 6,
    "sequences": 10,
    "graphs": 4,
    "pictures-and-words": 7,
    "answers": 3,
    "groups-and-errors": 3,
    "interventions": 5,
    "circuits": 4,
    "weights-and-inputs": 6,
    "training-and-transfer": 5,
    "robustness": 7,
    "sensitivity": 3,
    "layer-dynamics": 6,
    "coming-from": 2,
    "questions": 1,
    "get-started": 8,
    "targets-and-inputs": 4,
    "saliency": 7,
    "beyond-one-machine": 5,
    "write-your-own-method": 4,
    "write-your-own-figure": 3,
    "figures": 6,
    "gallery": 30,
}
"""Pages whose blocks follow each other -> how many there are at least; `tests/docs/test_readme.py` runs the others."""


HUB = {
    "HuggingFaceTB/SmolLM2-135M-Instruct": real_models.smollm2,
    "sentence-transformers/all-MiniLM-L6-v2": real_models.minilm,
}
"""Name on the hub -> the same model from the files of a package."""


@pytest.fixture
def no_network(monkeypatch):
    """Give what a page loads from the hub from the files of packages: `requirements-models.txt`."""
    transformers = pytest.importorskip("transformers")

    def model(name, *, dtype=None, attn_implementation=None):
        return HUB[name](*[attn_implementation] * bool(attn_implementation))[0]

    for kind in (transformers.AutoModel, transformers.AutoModelForCausalLM):
        own = kind.from_pretrained
        monkeypatch.setattr(
            kind,
            "from_pretrained",
            lambda name, own=own, **how: model(name, **how) if name in HUB else own(name, **how),
        )
    tokenizer = transformers.AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        transformers.AutoTokenizer,
        "from_pretrained",
        lambda name, **how: HUB[name]()[1] if name in HUB else tokenizer(name, **how),
    )


def same(printed, told):
    """The same words, and numbers that differ by no more than another processor may make of them."""
    assert NUMBER.sub("_", printed).split() == NUMBER.sub("_", told).split()
    found, expected = ([float(number) for number in NUMBER.findall(text)] for text in (printed, told))
    assert found == pytest.approx(expected, rel=0.02, abs=0.002)


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.usefixtures("registries", "no_network")
def test_every_block_prints_what_stands_below_it(name, tmp_path, monkeypatch, capsys):
    if name == "sequences" and sys.version_info < (3, 11):
        pytest.skip("aeon and PyWavelets, whose data it reads, need Python 3.11")
    page = DOCS / f"{name}.md"
    assert "from tests" not in page.read_text(), "a page runs from the installed package"
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```\n\n(?:```text\n(.*?)```)?", page.read_text(), flags=re.S)
    assert len(blocks) == page.read_text().count("```python") >= PAGES[name]
    names = {"__name__": "page"}
    for code, told in blocks:
        exec(compile(code, str(page), "exec"), names)
        same(capsys.readouterr().out, told)
    pictures = sorted(path.name for path in tmp_path.glob("*.png"))
    assert pictures == sorted(re.findall(rf"\]\(({name}-[\w-]+\.png)\)", page.read_text()))
    for picture in pictures:
        assert 0 < (DOCS / picture).stat().st_size < MOST_BYTES


def test_the_comparison_finds_what_differs():
    same("a 1.000 b", "a  1.001 b")
    for other in ("a 1.100 b", "a 1.000 c", "a -1.000 b"):
        with pytest.raises(AssertionError):
            same(other, "a 1.000 b")
