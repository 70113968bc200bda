"""The figures of the gallery, each with a caption that says what is seen and its numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from layerlens import plotting
from layerlens.plotting import Plot
from layerlens.plotting.drawing import attribution_sample as shown
from layerlens.plotting.words import words
from layerlens.report.alt_text import of_ledger, of_map, of_profile
from layerlens.results import ActivationMaps, Attribution, LayerProfile

from .demo_subject import Subject
from .measure import Findings, at_depth


@dataclasses.dataclass(frozen=True)
class Figure:
    """One figure of the gallery.

    Attributes:
        name: of its files, without suffix.
        title: short, for the page.
        alt: what is seen, in numbers, for those who do not see it.
        caption: how to read it.
        plot: the picture.
    """

    name: str
    title: str
    alt: str
    caption: str
    plot: Plot


def figures(
    subject: Subject, findings: list[Findings], maps: list[ActivationMaps], profile: LayerProfile
) -> list[Figure]:
    """All figures, in the order of the page.

    Args:
        subject: what was looked at.
        findings: by picture.
        maps: activations on the first picture, by layer.
        profile: sensitivity on the first picture.
    """
    drawn = [_activations(maps, findings[0]), _grad_cam(findings)]
    names: set[str] = set()
    for found in findings:
        name = _file_name(found.title, names)
        names.add(name)
        drawn += [_saliency(found, name), _relevance(found, name, subject), _ledger(found, name)]
    return [*drawn, _sensitivity(subject, findings[0], profile)]


def _file_name(title: str, taken: set[str]) -> str:
    """The title in letters, digits and underscores; with a number behind it where that is taken."""
    plain = "".join(c if c.isalnum() else "_" for c in title.lower())
    name, number = plain, 2
    while name in taken:
        name, number = f"{plain}_{number}", number + 1
    return name


def _activations(maps: list[ActivationMaps], found: Findings) -> Figure:
    caption = (
        f"The strongest six units of layers from the first to the last, on {found.title!r}: edges and colours first, "
        "then textures, then parts, on ever coarser grids. One scale per row; its numbers stand at the bar."
    )
    alt = "Maps of units, a row per layer: " + "; ".join(
        f"{one.layer}, {one.values.shape[-2]} x {one.values.shape[-1]} places, {float(one.values.min()):.3g} to "
        f"{float(one.values.max()):.3g}"
        for one in maps
    )
    return Figure("activations", "Activations by depth", f"{alt}.", caption, plotting.activation_mosaic(maps))


def _grad_cam(findings: list[Findings]) -> Figure:
    where = findings[0].cam.settings
    classes = " ".join(f"{f.title}: {f.target.label}, top class {f.top} ({f.probability:.2f})." for f in findings)
    caption = (
        f"Grad-CAM at {where['layer']}, a grid of {where['size'][0]} x {where['size'][1]} places, enlarged, on one "
        f"scale for all pictures. {classes}"
    )
    labels = [f"{f.title}, score {float(f.cam.score[0]):.3g}" for f in findings]
    plot = plotting.overlay_grid([f.cam for f in findings], labels=labels)
    return Figure("grad_cam", "Class activation maps", _alt([f.cam for f in findings], labels), caption, plot)


def _saliency(found: Findings, name: str) -> Figure:
    steps = int(found.saliency[1].checks["steps"][0])
    copies = found.saliency[2].settings["samples"]
    error = float(found.saliency[2].checks["relative standard error"][0])
    caption = (
        f"Four methods for {found.target.label!r}, each on its own scale: Grad-CAM says where the deep layer that it "
        f"reads speaks for the class, the others what single pixels do. Integrated gradients took {steps} steps "
        f"from a zero input and miss the difference of scores by {found.completeness:.1%}. SmoothGrad averages "
        f"{copies} noisy copies; the standard error is {error:.0%} of the map's norm."
    )
    maps = [found.cam, *found.saliency]
    alt = _alt(maps, [words(one.how) for one in maps])
    return Figure(f"{name}_saliency", f"Saliency: {found.title}", alt, caption, plotting.compare_methods(maps))


def _relevance(found: Findings, name: str, subject: Subject) -> Figure:
    ledger = found.relevance.ledger
    middle = at_depth(found.relevance, subject.depth)
    caption = (
        f"Relevance of the pixels, and at the output of {subject.depth}, in units of the score. Of a score of "
        f"{float(ledger.score[0]):.4g} the pixels hold {float(ledger.inputs[0]):.4g}, so a map of pixels alone leaves "
        f"{float(ledger.gap[0]):.0%} of it out; at {subject.depth} the places sum to "
        f"{float(middle.tensor.sum()):.4g}. The rest went to constants, as the ledger shows."
    )
    maps = [found.relevance, middle]
    alt = _alt(maps, [words(one.how) for one in maps])
    return Figure(f"{name}_relevance", f"Relevance: {found.title}", alt, caption, plotting.compare_methods(maps))


def _ledger(found: Findings, name: str) -> Figure:
    ledger = found.relevance.ledger
    caption = (
        "Where the score went on its way back to the picture: biases, norm shifts and running means of each layer, and "
        f"at the end the pixels. All entries sum to the score; the residual is {float(ledger.relative[0]):.0e} of the "
        "largest."
    )
    plot = plotting.relevance_flow(found.relevance)
    return Figure(f"{name}_ledger", f"Ledger: {found.title}", of_ledger(ledger, plot), caption, plot)


def _sensitivity(subject: Subject, found: Findings, profile: LayerProfile) -> Figure:
    highest = ", ".join(f"{layer} ({value:.3g})" for layer, value in profile.ranked()[:3])
    caption = (
        "Relative change of each block's output per relative change of the picture, root mean square over "
        f"{profile.settings['probes']} random directions ({profile.method}); 1 passes noise on as it is. Largest: "
        f"{highest}. The mark is the same model with the entries of every weight tensor shuffled."
    )
    plot = plotting.layer_profile(profile, scale="log", title=f"{subject.name}, {found.title}")
    return Figure("sensitivity", "Sensitivity by layer", of_profile(profile), caption, plot)


def _alt(maps: Sequence[Attribution], labels: Sequence[str]) -> str:
    """Maps of one figure in words: their sums, strongest places and spread."""
    return " ".join(of_map(shown.read(one, 0), label) for one, label in zip(maps, labels, strict=True))
