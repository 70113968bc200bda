"""Sampling loops of a diffusion model: a function of the user, a scheduler of diffusers, or one of its pipelines."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError
from layerlens.inputs.inputs import Forward
from layerlens.targets.outputs import main_output


def as_loop(loop: Any, steps: int, seed: int) -> Forward:
    """Return `loop(model, *args, **kwargs)` of a function, a scheduler or a pipeline.

    Args:
        loop: the function; or a scheduler, of which each run takes a copy; or a pipeline, called with its own models.
        steps: number of steps of a scheduler or pipeline.
        seed: seed of the numbers that a scheduler draws.

    Raises:
        InputError: when it is none of these.
    """
    if is_scheduler(loop):
        return _of_scheduler(loop, steps, seed)
    if hasattr(loop, "components") and callable(loop):
        return _of_pipeline(loop, steps)
    if callable(loop):
        return loop  # type: ignore[no-any-return]
    raise InputError(
        f"loop= is a function loop(model, noise, ...), a scheduler or a pipeline of diffusers; got {loop!r}."
    )


def is_scheduler(loop: Any) -> bool:
    """Whether a loop is a scheduler; the noise level is then the denoiser's argument 1."""
    return hasattr(loop, "set_timesteps") and hasattr(loop, "step")


def _of_scheduler(scheduler: Any, steps: int, seed: int) -> Forward:
    takes = inspect.signature(scheduler.step).parameters

    def loop(model: nn.Module, sample: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        own = copy.deepcopy(scheduler)
        own.set_timesteps(steps, device=sample.device)
        drawn = {}
        if "generator" in takes:
            drawn["generator"] = torch.Generator(sample.device).manual_seed(seed)
        x = sample * own.init_noise_sigma
        for level in own.timesteps:
            output = model(own.scale_model_input(x, level), level.expand(len(x)), *args, **kwargs)
            predicted = main_output(output)
            if predicted.shape[1] == 2 * x.shape[1]:  # the second half is the variance, as in DiT
                predicted = predicted[:, : x.shape[1]]
            x = own.step(predicted, level, x, **drawn).prev_sample
        return x  # type: ignore[no-any-return]

    return loop


def _of_pipeline(pipeline: Any, steps: int) -> Forward:
    run = inspect.unwrap(type(pipeline).__call__)  # without the decorator that switches gradients off
    takes = inspect.signature(run).parameters
    options: dict[str, Any] = {"num_inference_steps": steps, "output_type": "latent", "return_dict": False}
    known = {name: value for name, value in options.items() if name in takes}

    def loop(model: nn.Module, **kwargs: Any) -> Any:
        output = run(pipeline, **{**known, **kwargs})
        return output[0] if isinstance(output, tuple) else output

    return loop
