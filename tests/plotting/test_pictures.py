"""Some figures against pictures of them that somebody has looked at; see pictures.py for how to make them anew."""

import matplotlib
import pytest

from layerlens import plotting

from . import pictures
from .helpers import profile

REASON = pictures.other_version()


@pytest.fixture(scope="session", autouse=True)
def made_anew(request):
    if request.config.getoption("--make-pictures"):
        assert not REASON, REASON
        pictures.make()


@pytest.mark.skipif(bool(REASON), reason=REASON)
@pytest.mark.parametrize("name", pictures.PICTURES)
def test_a_figure_looks_as_it_did(name):
    told = (
        f"{name} differs from tests/plotting/baseline/{name}.png; where that is meant, see tests/plotting/pictures.py"
    )
    assert (
        pictures.difference((pictures.FOLDER / f"{name}.png").read_bytes(), pictures.png(name)) < pictures.TOLERANCE
    ), told


def test_pictures_and_figures_belong_together_and_are_small():
    found = {path.stem: path.stat().st_size for path in pictures.FOLDER.iterdir()}
    assert set(found) == set(pictures.PICTURES) and max(found.values()) < pictures.MOST_BYTES


def test_the_version_of_the_pictures_is_the_one_that_is_pinned(monkeypatch):
    monkeypatch.setattr(matplotlib, "__version__", pictures.pinned())
    assert pictures.other_version() == ""
    monkeypatch.setattr(matplotlib, "__version__", "0.1")
    assert pictures.other_version() == f"the pictures are those of matplotlib {pictures.pinned()}, and this is 0.1"


@pytest.mark.slow
@pytest.mark.parametrize("change", ["a name", "a color", "the null", "the size", "one value"])
def test_a_small_change_of_a_figure_is_seen(change):
    base = profile(12)
    names = list(base.layers)
    before = plotting.layer_profile(base).png(pictures.DPI)
    if change == "the size":
        after = plotting.layer_profile(base, width=3.3).png(pictures.DPI)
    elif change == "a color":
        with plotting.style(colors=["#5072B2"]):
            after = plotting.layer_profile(base).png(pictures.DPI)
    elif change == "a name":
        after = plotting.layer_profile(base, labels=["head", *names[1:]]).png(pictures.DPI)
    elif change == "the null":
        after = plotting.layer_profile(profile(12, null=False)).png(pictures.DPI)
    else:
        base.values[3] *= 1.2
        after = plotting.layer_profile(base).png(pictures.DPI)
    assert pictures.difference(before, after) > pictures.TOLERANCE
    assert pictures.difference(before, before) == 0
