"""Class activation maps of one small model of each timm family: chosen layer and grid compared with a map made by hand.

python -m benchmarks.cams [ROWS] > benchmarks/cams.md

Rows are added to the file ROWS as they are made, and those that it has are not made again: a run that was ended
continues; delete the file to measure again.

The weights are random, with a fixed seed (also those that timm sets to zero); the image is noise. `grid` is that of
the layer that `grad_cam` chose, with the stride and the first position in pixels; `reduction` is the one that timm
states for its last stage. `by hand` is a hook on the chosen tensor and `torch.autograd.grad`: its layout (channels
first or last, how many leading tokens) is not taken from layerlens but found by experiment, as the one whose places
change where the image changes. `r` is the correlation of both maps. `center` is how far the places lie from what they
read, in strides: a place reads the image where the gradient is, and neighboring lines of places read equally much half
way between their centers (mean over the lines in the middle of the image, the worse of height and width; where it is
more than a third, with the standard error over the draws: a row is to be looked at if two of these leave more). `seen`
is the part of the gradient in which these lines differ. It is measured with normalization set to random images and with
kernels that fall off evenly from their middle, as random ones of many layers spread over the whole image (mean over 8
draws, over as many as see .5, or over 32 where the row would have to be looked at); with the random ones where less
than .05 is seen so. Where that is less, too, attention with random weights mixes all places, and `center` says nothing.
`unknown` counts tensors of layers with an axis that could not be followed. `cost` is the time to follow the axes over a
forward pass, in processor time of one thread.
"""

import copy
import itertools
import math
import pathlib
import platform
import sys
import time
import warnings

import numpy as np
import timm
import torch

from layerlens import grad_cam
from layerlens.axes.follow import Followed, follow
from layerlens.axes.layout import Grid, described, grid
from layerlens.errors import LayerLensError
from layerlens.inputs.inputs import as_inputs
from layerlens.progress import track

from .timing import medians

MODELS = """
    beit_base_patch16_224 halonet_h1 mobileone_s0 cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32
    convnext_atto cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny
    deit_tiny_patch16_224 densenet121 dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0
    mobilenetv2_035 efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
    focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 hrnet_w18_small iformer_t
    inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0
    test_mambaout maxvit_pico_rw_256 poolformer_s12 gmlp_ti16_224 lcnet_035 mobilenetv5_base mobilevit_xxs
    mvitv2_tiny naflexvit_base_patch16_parfac_gap nest_tiny nextvit_small test_nfnet pit_ti_224 pvt_v2_b0 rdnet_tiny
    regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d resnet10t resnetv2_18 rexnet_100 selecsls42
    legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18 starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224
    swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224 tresnet_m twins_svt_small
    vgg11 visformer_tiny vit_tiny_patch16_224 vit_tiny_r_s16_p8_224 test_vit_relpos samvit_base_patch16_224
    vitamin_small_224 sam2_hiera_tiny
""".split()
"""The smallest model of each module of timm 1.0 that a small machine runs."""

SIZES = {"csatv2": 256, "naflexvit_base_patch16_parfac_gap": 224, "sam2_hiera_tiny": 224}
"""Sizes of images that are smaller than the model's own."""

TARGET = 1
CENTERS = (1 / 6, 1 / 2, 5 / 6)


def held(
    model: torch.nn.Module, x: torch.Tensor, layer: str, call: int, name: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what one call of a layer returned, in the graph, and the output."""
    kept: list[torch.Tensor] = []

    def keep(module: torch.nn.Module, args: object, output: object) -> None:
        kept.append(output[int(name)] if name.isdigit() else output)  # type: ignore[index]

    handle = model.get_submodule(layer).register_forward_hook(keep)
    output = model(x)
    handle.remove()
    return kept[call], output


def layouts(shape: tuple[int, ...]) -> dict[str, tuple[tuple[int, ...], int, int]]:
    """Return ways to read a tensor of a square image: name -> order (batch, unit, *places), leading tokens, side."""
    found = {}
    if len(shape) == 4:
        if shape[2] == shape[3]:
            found["channels first"] = ((0, 1, 2, 3), 0, shape[2])
        if shape[1] == shape[2]:
            found["channels last"] = ((0, 3, 1, 2), 0, shape[1])
    for order in ((0, 2, 1), (0, 1, 2)) if len(shape) == 3 else ():
        for extra in range(9):
            side = math.isqrt(max(shape[order[2]] - extra, 0))
            if side > 1 and side * side == shape[order[2]] - extra:
                found[f"{extra} + tokens{'' if order[2] == 1 else ' last'}"] = (order, extra, side)
    return found


def laid(tensor: torch.Tensor, layout: tuple[tuple[int, ...], int, int]) -> torch.Tensor:
    """Return a tensor as `(batch, unit, side, side)`."""
    order, extra, side = layout
    moved = tensor.permute(order)
    return moved if moved.ndim == 4 else moved[:, :, extra:].reshape(*moved.shape[:2], side, side)


def changes(model: torch.nn.Module, x: torch.Tensor, layer: str, call: int, name: str) -> torch.Tensor:
    """Return how the tensor changes when each of nine patches of the image is replaced, `(patch, *shape)`."""
    size, found = x.shape[2], []
    with torch.no_grad():
        before = held(model, x, layer, call, name)[0]
        for row, column in itertools.product(CENTERS, CENTERS):
            other, half = x.clone(), size // 12
            top, left = (int(center * size) - half for center in (row, column))
            part = other[..., top : top + 2 * half, left : left + 2 * half]
            part.copy_(3 * torch.randn(part.shape, generator=torch.Generator().manual_seed(1)))
            found.append((held(model, other, layer, call, name)[0] - before).abs()[0])
    return torch.stack(found)


def peaks(maps: torch.Tensor, places: list[np.ndarray], size: int, slack: float) -> int:
    """Count the patches whose map `(patch, side, side)` peaks where the places are."""
    count = 0
    for one, (row, column) in zip(maps, itertools.product(CENTERS, CENTERS), strict=True):
        at = divmod(int(one.argmax()), one.shape[1])
        wanted = (np.clip(center * size, places[k][0], places[k][-1]) for k, center in enumerate((row, column)))
        count += all(abs(places[k][at[k]] - center) <= slack for k, center in enumerate(wanted))
    return count


def made(name: str) -> tuple[torch.nn.Module, torch.Tensor]:
    """Return a frozen model with random weights, and noise for it."""
    torch.manual_seed(0)
    options = {"img_size": SIZES[name]} if name in SIZES else {}
    try:
        model = timm.create_model(name, num_classes=5, **options).eval().requires_grad_(False)
    except TypeError:  # a model of any size
        model = timm.create_model(name, num_classes=5).eval().requires_grad_(False)
    for weight in model.parameters():
        if weight.ndim > 1 and not weight.any():
            weight.normal_(std=0.02)
    size = SIZES.get(name) or model.pretrained_cfg["input_size"][-1]
    return model, torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))


def row_of(name: str) -> tuple[str, str]:
    """Return the row of a model, and a remark if something is wrong."""
    model, x = made(name)
    size = x.shape[-1]
    result = grad_cam(model, x, target=TARGET, relu=False)
    layer, call, tensor = result.settings["layer"], result.settings["call"], result.settings.get("tensor", "")
    traced = follow(model, as_inputs(x))
    axes = traced.site(layer, call).outputs[tensor]
    over = grid(axes)
    assert over is not None
    spans = [offset + stride * np.arange(count)
             for offset, stride, count in zip(over.offsets, over.strides, over.sizes, strict=True)]  # fmt: skip
    layout = by_experiment(model, x, layer, call, tensor)
    correlation = math.nan
    if layout:
        leaf = x.clone().requires_grad_()
        raw, output = held(model, leaf, layer, call, tensor)
        a, g = (laid(one, layouts(tuple(raw.shape))[layout])[0]
                for one in (raw.detach(), torch.autograd.grad(output[0, TARGET], raw)[0]))  # fmt: skip
        cam = (g.mean(dim=(1, 2), keepdim=True) * a).sum(dim=0).numpy()
        if cam.shape == over.sizes:
            wide = np.stack([np.interp(np.arange(size), spans[1], line) for line in cam])
            whole = np.stack([np.interp(np.arange(size), spans[0], line) for line in wide.T]).T
            correlation = float(np.corrcoef(whole.ravel(), result.tensor[0].numpy().ravel())[0, 1])
    stated = getattr(model, "feature_info", None)
    stated = stated[-1]["reduction"] if isinstance(stated, list) and stated else "-"
    seconds = medians({"forward": lambda: once(model, x), "follow": lambda: follow(model, as_inputs(x))}, 3,
                      time.process_time)  # fmt: skip
    center, error, seen = off_center(model, size, layer, call, tensor, layout, over) if layout else (math.nan, 0.0, 0.0)
    placed = abs(center) <= 1 / 3 + 2 * error or seen < 0.05
    wrong = "" if correlation > 0.999 and placed else f"{name}: r = {correlation:.3f}, center {center:+.2f}"
    shown = described(axes).replace(" | ", ", ")  # a bar ends a cell
    missed_by = f"{center:+.2f}" + (f" ± {error:.2f}" if abs(center) > 1 / 3 else "")
    cells = [name, f"`{layer}`" + (f" #{call}" if call else ""), grid_text(over), f"`{shown}`", str(stated),
             layout or "none", f"{correlation:.3f}", missed_by, f"{seen:.2f}", unknown(traced),
             f"{seconds['follow'] / seconds['forward']:.1f}"]  # fmt: skip
    return " | ".join(cells), wrong


def by_experiment(model: torch.nn.Module, x: torch.Tensor, layer: str, call: int, tensor: str) -> str:
    """Return the layout in which the places change where the image does."""
    change = changes(model, x, layer, call, tensor)
    best, most = "", -1
    for name, layout in layouts((1, *change.shape[1:])).items():
        found = laid(change, layout).sum(dim=1)
        found = found / found.mean(dim=0).clamp_min(1e-30)  # some places change more than others, whatever is replaced
        side = layout[2]
        even = [(np.arange(side) + 0.5) * x.shape[2] / side] * 2
        count = peaks(found, even, x.shape[2], 1.5 * max(x.shape[2] / side, x.shape[2] / 12))
        if count > most:
            best, most = name, count
    return best


def off_center(
    model: torch.nn.Module, size: int, layer: str, call: int, tensor: str, layout: str, over: Grid
) -> tuple[float, float, float]:
    """Return by how many strides places miss the center of what they read, its standard error, and what is seen."""
    middle = over.sizes[0] // 2
    lines = range(middle - 1, middle + 1 + over.sizes[0] % 2)
    stride, first = (torch.tensor(one)[:, None] for one in (over.strides, over.offsets))
    stated = first + (torch.tensor(lines[:-1]) + 0.5) * stride
    center, error, seen = math.nan, 0.0, 0.0
    for even in (True, False):
        energy, draws = torch.zeros(2, len(lines), size, dtype=torch.float64), []
        for draw in range(32 if seen < 0.05 else 0):
            one = read(copy.deepcopy(model), size, layer, call, tensor, layout, lines, even, draw)
            energy += one
            (off, most), (off_alone, _) = missed(energy, stated, stride), missed(one, stated, stride)
            draws.append(off_alone)
            seen, worse = most / (draw + 1), int(off.abs().argmax())
            center = float(off[worse])
            error = float(torch.stack(draws)[:, worse].std()) / math.sqrt(draw + 1) if draw else 0.0
            enough = (seen > 0.5 and draw) or draw > 6  # a few draws of a wide field may lie on one side by chance
            if (seen > 0.5 and abs(center) <= 1 / 3) or (enough and abs(center) <= 1 / 3 + 2 * error):
                break
    return center, error, seen


def missed(energy: torch.Tensor, stated: torch.Tensor, stride: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return by how many strides lines of places miss what they read, `(axis,)`, and the part in which they differ."""
    more = (energy[:, :-1] - energy[:, 1:]).cumsum(dim=2)  # how much more the line before has read up to there
    most = more.amax(dim=2, keepdim=True)
    near = (more >= 0.999 * most).double()  # between narrow windows nothing is read
    halfway = (near * (torch.arange(energy.shape[2]) + 0.5)).sum(dim=2) / near.sum(dim=2)
    return ((stated - halfway) / stride).mean(dim=1), float(most.min())


def read(
    model: torch.nn.Module, size: int, layer: str, call: int, tensor: str, layout: str, lines: range, even: bool,
    draw: int,
) -> torch.Tensor:  # fmt: skip
    """Return what lines of places read of the image, `(axis, line, entry)`: shares of the squared gradient."""
    generator, noise = torch.Generator().manual_seed(draw), 0.1 if even else 1.0
    norms = [module for module in model.modules() if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0
    with torch.no_grad():
        for module in model.modules() if even else ():
            if isinstance(module, torch.nn.Conv2d):
                module.weight.copy_(even_kernels(module.weight, generator))
        if norms:
            model(colors(6, size, noise, generator))
    for norm in norms:
        norm.eval()
    x = colors(1, size, noise, generator).requires_grad_()
    raw, _ = held(model, x, layer, call, tensor)
    places = laid(raw, layouts(tuple(raw.shape))[layout])[0]
    energy = torch.zeros(2, len(lines), size, dtype=torch.float64)
    for axis, (k, line) in itertools.product(range(2), enumerate(lines)):
        part = places.select(1 + axis, line)
        signs = torch.randn(part.shape, generator=generator)
        (slope,) = torch.autograd.grad((part * signs).sum(), x, retain_graph=True)
        energy[axis, k] = slope[0].double().square().sum(dim=(0, 2 - axis))
    return energy / energy.sum(dim=2, keepdim=True)


def even_kernels(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return kernels `(unit, channel, height, width)` that fall off evenly from the middle, with random signs."""
    lines = [torch.tensor([float(math.comb(count - 1, k)) for k in range(count)]) for count in weight.shape[2:]]
    window = lines[0][:, None] * lines[1]
    signs = torch.randn(*weight.shape[:2], 1, 1, generator=generator) * weight.square().mean().sqrt()
    return signs * window * (window.numel() / window.square().sum()).sqrt()


def colors(count: int, size: int, noise: float, generator: torch.Generator) -> torch.Tensor:
    """Return images of one color each, with noise of this deviation."""
    one = torch.randn(count, 3, 1, 1, generator=generator)
    return one + noise * torch.randn(count, 3, size, size, generator=generator)


def once(model: torch.nn.Module, x: torch.Tensor) -> None:
    """Run the model."""
    with torch.no_grad():
        model(x)


def grid_text(over: Grid) -> str:
    """Describe a grid: `7 x 7, every 32 from 0`."""
    sizes = " x ".join(map(str, over.sizes))
    return f"{sizes}, every {over.strides[0]:g} from {over.offsets[0]:g}"


def unknown(traced: Followed) -> str:
    """Count the tensors with an axis that could not be followed."""
    every = [axes for site in traced.calls for axes in site.outputs.values()]
    bad = sum(not all(axis.known for axis in axes) for axes in every)
    return f"{bad} of {len(every)}"


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    kept = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else None
    known = kept.read_text(encoding="utf-8").splitlines() if kept is not None and kept.exists() else []
    made = {line.split(" ", 1)[0]: line.split("\t") for line in known}
    for name in track([name for name in MODELS if name not in made], "models"):
        try:
            made[name] = list(row_of(name))
        except (LayerLensError, RuntimeError, ValueError, AttributeError, AssertionError, KeyError) as error:
            message = " ".join(f"{type(error).__name__} {error}".split())
            made[name] = [f"{name}{' |' * 10}", f"{name}: {message}"]
        if kept is not None:
            with kept.open("a", encoding="utf-8") as file:
                file.write("\t".join(made[name]) + "\n")
    print(f"# Class activation maps of timm's families\n\ntimm {timm.__version__}, torch {torch.__version__}, ", end="")
    print(f"{platform.machine()}. Made by `python -m benchmarks.cams`.\n\n{(__doc__ or '').split(chr(10) * 2)[3]}\n")
    print("| model | layer | grid | axes | reduction | by hand | r | center | seen | unknown | cost |")
    print("| --- |" + " --- |" * 10)
    for name in MODELS:
        print(f"| {made[name][0]} |")
    wrong = [made[name][1] for name in MODELS if made[name][1]]
    print(f"\n{len(MODELS)} families, {len(wrong)} to look at.")
    for remark in wrong:
        print(f"- {remark}")


if __name__ == "__main__":
    main()
