"""Explain a picture that a diffusion model sampled: which words, steps and layers made it, and where."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from layerlens.analyzers.relevance.loop_records import CallRelevance, LoopRelevance
from layerlens.analyzers.relevance.looped import LoopedCalls, looped_relevance
from layerlens.analyzers.relevance.rules.rulebook import Rulebook
from layerlens.errors import InputError, OptionError, check_count
from layerlens.inputs.inputs import Forward, Hold, Input, Inputs, as_inputs
from layerlens.model.borrowed import borrowed, seed_torch
from layerlens.model.layers import LayerPath, Selection
from layerlens.progress import counting
from layerlens.results import SamplingAttribution
from layerlens.signatures import public
from layerlens.targets.outputs import main_output
from layerlens.targets.target import Target
from layerlens.targets.tokens import place_names

from .noise_levels import Level, noise_levels
from .picture_regions import Region, cells_of, contrast, grid_of, region
from .sampling_loops import as_loop, is_scheduler

EXPLANATION = (
    "A word's relevance is the part of the score that reached its embedding by the rules of relevance propagation, "
    "through all steps; with the constants of the steps and the starting noise the parts add up to the score.",
    "It is not what would change if the word were another one: draw the picture again with another word for that.",
)


@public
def explain_sampling(
    model: nn.Module,
    x: Input,
    *,
    loop: Any = None,
    target: Region = None,
    maps: int | tuple[int, int] | None = None,
    words: Sequence[str] | None = None,
    prompt: str | None = None,
    level: Level = None,
    denoiser: LayerPath = "",
    layers: Selection = "blocks",
    rules: str | Rulebook = "auto",
    steps: int = 20,
    seed: int = 0,
    hold: Hold = None,
    batch_size: int = 32,
    tokenizer: Any = None,
    forward: Forward | None = None,
    progress: bool | None = None,
) -> SamplingAttribution:
    """Trace a score of a sampled picture back to the words of the prompt, step by step and layer by layer.

    Relevance is propagated through the whole sampling loop (Bach et al. 2015; the rules of `relevance`). The loop runs
    once without a graph; then each call of the model is run again, from the last to the first, so that memory is that
    of one call. Noise that the loop draws is drawn once.

    Args:
        x: inputs of the loop, the noise first: a tuple of its arguments after the model, or a dict. Word ids count by
            their embeddings; prompt embeddings, `(batch, token, feature)`, by their features' sum.
        loop: `loop(model, *args, **kwargs)`, which calls the model step by step with gradients on and returns the
            picture; a scheduler of diffusers, which calls `model(x, t, ...)`; or a pipeline of diffusers, which takes a
            dict of its arguments (`{"latents": noise, "prompt_embeds": ...}`) and calls the model as its own part. None
            is `forward`.
        target: region of the picture whose contrast is scored: a boolean mask `(height, width)` or
            `(batch, height, width)`, a box `(top, left, bottom, right)`, without the last two; or another score, a
            function of the picture or a `Target`. None is the whole picture. Contrast is (x - m)(x' - m), mean over
            places and channels: x' is the picture held fixed, m its median per channel, the background.
        maps: cells of a grid over the picture, rows and columns, for each of which the words' relevance is traced; None
            for none. A grid costs about as much as a batch of as many samples.
        words: name of each token of the prompt.
        prompt: argument of the denoiser that holds the prompt; None finds the only one of token ids, else the only one
            after the picture that is `(batch, token, feature)`.
        level: argument of the denoiser that holds the noise level, by name or position, or a function of its arguments
            that returns it: names the steps. None is the timestep of a scheduler or an argument whose name says that
            it is one (`timestep`, `sigma`, `noise_level`); without any, steps are the calls, by number.
        denoiser: path of the layer that is called in each step, where that is not the model itself.
        layers: ... Inside the denoiser; `"blocks"` are its children, and those of its lists.
        steps: number of steps, for a scheduler or pipeline.
        seed: seed of what the loop draws.
        batch_size: cells per pass.
        tokenizer: names the tokens of ids where `words` is None.

    Returns:
        A `SamplingAttribution`.

    Raises:
        OptionError: if there is no loop, or the grid is none.
        InputError: if the loop does not call the denoiser, switches gradients off, or draws other numbers in each run.
        TargetError: if the target does not fit the picture.

    Example:
        >>> denoiser = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Tanh())
        >>> def sample(model, x):
        ...     for _ in range(4):
        ...         x = 0.5 * x + model(x)
        ...     return x
        >>> found = explain_sampling(denoiser, torch.ones(1, 3, 8, 8), loop=sample, target=(0, 0, 8, 4))
        >>> bool(found.ledger.relative.max() < 1e-5)
        True
    """
    check_count("batch_size", batch_size)
    run = _Run(model, x, as_loop(_loop_of(loop, forward, denoiser), steps, seed), denoiser, prompt, rules, seed, hold)
    with borrowed(model), counting("explaining", None, progress, unit="calls of the model") as done:
        chosen = _blocks(run.layer) if isinstance(layers, str) and layers == "blocks" else layers
        inputs = run.inputs()
        ((found,), picture) = run.on(inputs, [region(target)], chosen, done)
        grid = None if maps is None else grid_of(maps, picture)
        cells = [
            _map(run, inputs, picture, sample, grid, batch_size, done)
            for sample in range(0 if grid is None else len(picture))
        ]  # fmt: skip
    if level is None and is_scheduler(loop):
        level = 1
    where, levels = noise_levels([call.given for call in found.calls], level)
    told = _Told(found.calls, len(picture), levels)
    texts = told.names(words, tokenizer)
    names = tuple(found.calls[0].layers)
    through = torch.zeros(len(names), len(told.levels), 2, dtype=torch.float64)
    moved = torch.full((len(names), len(told.levels)), float("nan"), dtype=torch.float64)
    for call, step in zip(found.calls, told.steps, strict=True):
        for row, name in enumerate(names):
            through[row, step] += call.layers[name] / len(picture)
            moved[row, step] = call.sizes[name][1] / call.sizes[name][0].clamp_min(1e-30)
    settings = {
        "rules": found.calls[0].rules, "maps": grid, "denoiser": denoiser, "prompt": found.calls[0].prompt,
        "level": "timestep of the scheduler" if level == 1 and is_scheduler(loop) else where, "seed": seed,
    }  # fmt: skip
    cost = f"{len(found.calls)} calls of the model, each run twice and swept once"
    return SamplingAttribution(
        names=texts,
        levels=told.levels,
        by_step=told.by_step.cpu(),
        constants=told.constants,
        inputs=found.inputs,
        layer_names=names,
        through=through,
        moved=moved,
        score=found.score,
        target=found.target,
        picture=picture,
        ledger=found.ledger,
        method="relevance through sampling",
        settings=settings,
        maps=torch.stack(cells) if cells and texts else None,
        cost=cost if grid is None else f"{cost}; for the maps as much for each of {grid[0] * grid[1]} cells",
        explanation=EXPLANATION,
    )


@dataclasses.dataclass(frozen=True)
class _Run:
    """A loop, to be run for several scores."""

    model: nn.Module
    x: Input
    loop: Forward
    path: LayerPath
    prompt: str | None
    rules: str | Rulebook
    seed: int
    hold: Hold

    @property
    def layer(self) -> nn.Module:
        """The denoiser."""
        return self.model.get_submodule(self.path)

    def inputs(self) -> Inputs:
        """The inputs; ids that the denoiser itself looks up are traced there, call by call."""
        given = as_inputs(self.x).named_for(self.model, self.loop).holding(self.hold)
        inside = f"{self.path}." if self.path else ""
        tables = [path for path, one in self.model.named_modules() if isinstance(one, nn.Embedding)]
        if any(not path.startswith(inside) for path in tables):
            return given
        whole = [name for name, one in given.tensors().items() if not one.is_floating_point()]
        return dataclasses.replace(given, held=tuple(dict.fromkeys([*given.held, *whole])))

    def on(
        self, inputs: Inputs, targets: Sequence[Target], layers: Selection, done: Callable[[int], object]
    ) -> tuple[list[LoopRelevance], torch.Tensor]:
        """Propagate the scores of several targets; return them and the picture.

        Raises:
            InputError: when the loop does not call the denoiser.
        """
        made: list[torch.Tensor] = []

        def seeded(model: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seed_torch(self.seed)
            output = self.loop(model, *args, **kwargs)
            made.append(main_output(output).detach())
            return output

        calls = LoopedCalls(self.layer, inputs.batch, prompt=self.prompt, rules=self.rules, layers=layers, done=done)
        found = looped_relevance(self.model, inputs, targets, seeded, calls)
        if not found[0].calls:
            raise InputError(
                f"no relevance met {type(self.layer).__name__}: the loop does not call it, or its picture does not "
                "depend on it. Name the layer that is called in each step, denoiser='unet'."
            )
        return found, made[-1]


class _Told:
    """What the calls say of words and steps.

    Args:
        calls: what relevance did in each call.
        batch: number of samples.
        levels: noise level of each call; None if unknown.

    Attributes:
        levels: name of each step.
        steps: step of each call.
        by_step: `(batch, word, step)`.
        constants: what else left the loop, `(batch, step)`.
    """

    def __init__(self, calls: Sequence[CallRelevance], batch: int, levels: Sequence[float] | None = None) -> None:
        new = [not k or levels is None or levels[k] != levels[k - 1] for k in range(len(calls))]
        self.steps = [step - 1 for step in itertools.accumulate(map(int, new))]
        firsts = [k for k, one in enumerate(new) if one]
        self.levels = tuple(f"{k}" if levels is None else f"t={levels[k]:g}" for k in firsts)
        self._prompts: list[torch.Tensor] = []
        parts: list[torch.Tensor] = []
        self.constants = torch.zeros(batch, len(firsts), dtype=torch.float64)
        for call, step in zip(calls, self.steps, strict=True):
            self.constants[:, step] += call.constants
            if call.words is None:
                continue
            values = call.values[call.prompt].double()
            values = values.sum(-1) if call.words.is_floating_point() else values
            if len(values) % batch:
                raise InputError(
                    f"the model is called on {len(values)} rows for {batch} samples: which is whose is unknown."
                )
            groups = values.reshape(len(values) // batch, batch, -1)
            for group, content in zip(
                groups, call.words.reshape(len(groups), batch, *call.words.shape[1:]), strict=True
            ):
                known = [k for k, one in enumerate(self._prompts) if one.shape == content.shape and one.equal(content)]
                if not known:
                    self._prompts.append(content)
                    parts.append(group.new_zeros(*group.shape, len(firsts)))
                parts[known[0] if known else -1][:, :, step] += group
        self.by_step = torch.cat(parts, 1) if parts else torch.zeros(batch, 0, len(firsts), dtype=torch.float64)

    def names(self, words: Sequence[str] | None, tokenizer: Any) -> tuple[str, ...]:
        """Name the words, those of several prompts with the number of the prompt.

        Raises:
            OptionError: when there are more or fewer names than words.
        """
        found: list[str] = []
        for number, content in enumerate(self._prompts):
            count = content[0].numel() if not content.is_floating_point() else content.shape[1]
            texts = list(words) if words is not None else None
            if texts is None and not content.is_floating_point() and content.ndim == 2:
                texts = place_names(tokenizer, content[:1])
            if texts is not None and not len(texts) <= count:
                raise OptionError(f"words= has {len(texts)} names, and the prompt {count} tokens.")
            texts = [*(texts or ()), *(f"token {k}" for k in range(len(texts or ()), count))]
            found += texts if len(self._prompts) == 1 else [f"prompt {number}: {text}" for text in texts]
        return tuple(found)


def _map(
    run: _Run, inputs: Inputs, picture: torch.Tensor, sample: int, grid: tuple[int, int] | None, size: int,
    done: Callable[[int], object],
) -> torch.Tensor:  # fmt: skip
    """The relevance of each word for each cell of a grid over one sample's picture, `(word, rows, columns)`.

    Raises:
        InputError: when the loop draws other numbers in each run.
    """
    assert grid is not None
    own, parts, together = picture[sample : sample + 1], list[torch.Tensor](), True
    for masks in torch.split(cells_of(grid, own), size):
        if together:
            (found,), made = run.on(inputs.rows(torch.full((len(masks),), sample)), [contrast(masks)], (), done)
            together = _same(made, own)
            values = _Told(found.calls, len(masks)).by_step
        if not together:  # the loop draws numbers for each row: one row, and a sweep for each cell
            several, made = run.on(
                inputs.rows(torch.tensor([sample])), [contrast(one[None]) for one in masks], (), done
            )
            if not _same(made, own):
                raise InputError(
                    "the sampling loop draws other numbers in each run, so its maps would be of other pictures. Make "
                    "its generator inside of the loop: torch.Generator().manual_seed(0)."
                )
            values = torch.cat([_Told(one.calls, 1).by_step for one in several])
        parts.append(values.sum(2).cpu())
    return torch.cat(parts).T.reshape(-1, *grid)


def _same(made: torch.Tensor, picture: torch.Tensor) -> bool:
    return bool(torch.allclose(made, picture.expand_as(made), rtol=1e-3, atol=1e-3 * float(picture.abs().max())))


def _loop_of(loop: Any, forward: Forward | None, denoiser: LayerPath) -> Any:
    """The loop that was given.

    Raises:
        OptionError: when there is none.
    """
    if loop is not None or forward is not None:
        return forward if loop is None else loop
    if denoiser:
        return lambda model, *args, **kwargs: model(*args, **kwargs)
    raise OptionError(
        "explain_sampling needs the loop that calls the model: loop=sample, a function sample(model, noise, ...); "
        "loop=DDIMScheduler(...) of diffusers; or denoiser='unet' for a model that samples in its own forward."
    )


def _blocks(layer: nn.Module) -> list[LayerPath]:
    """The children of a layer, and those of its lists; without any, the layer itself."""
    paths: list[LayerPath] = []
    for name, child in layer.named_children():
        inner = [f"{name}.{place}" for place, _ in child.named_children()]
        paths += inner if isinstance(child, (nn.ModuleList, nn.ModuleDict)) else [name]
    return paths
