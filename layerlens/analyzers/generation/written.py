"""Texts that a model writes token by token, and the input of one forward pass over all of it."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import nn

from layerlens.errors import InputError, OptionError, TargetError
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.inputs.sequences import InputSequence, sequences
from layerlens.model.borrowed import seed_torch
from layerlens.progress import counting, track
from layerlens.targets.outputs import log_probabilities, main_output


@dataclasses.dataclass(frozen=True)
class Written:
    """A text that was written, or given, after a prompt.

    Attributes:
        inputs: input of one forward pass whose output has the scores of every step.
        sequence: name of the input that holds the text.
        first: place of the output that scores the first token.
        prompt: ids of the prompt, or of what starts the decoder, `(places,)`.
        ids: ids of the text, `(steps,)`.
        log_p: log-probabilities of the run that wrote it, `(steps,)`; None where they are unknown.
        method: how it was written.
    """

    inputs: Inputs
    sequence: str
    first: int
    prompt: torch.Tensor
    ids: torch.Tensor
    log_p: torch.Tensor | None
    method: str

    def until(self, step: int) -> Inputs:
        """Return the input up to the place that scores a step."""
        cut = int(len(self.prompt) + step - len(self.inputs.tensors()[self.sequence][0]))
        return self.inputs if cut >= 0 else shortened(self.inputs, self.sequence, -cut)


def write(
    model: nn.Module,
    prompt: Inputs,
    count: int,
    options: Mapping[str, Any],
    seed: int,
    forward: Forward | None,
    ends: int | None,
) -> Written:
    """Let a borrowed model write.

    Args:
        model: the model.
        prompt: one prompt.
        count: largest number of tokens.
        options: options of the model's own `generate`, or `do_sample` and `temperature`.
        seed: seed of sampling.
        forward: function to call instead of the model.
        ends: id of the token that ends a text, for models without a `generate` of transformers.

    Raises:
        InputError: when the prompt is not one row of tokens.
        OptionError: when the model writes nothing, or an option is unknown.
    """
    seed_torch(seed)
    own = getattr(model, "generate", None)
    if forward is None and callable(own) and hasattr(model, "generation_config"):
        return _write_by_generate(model, own, prompt, count, options)
    if others := options.keys() - {"do_sample", "temperature"}:
        raise OptionError(
            f"{type(model).__name__} has no generate() of transformers, or is called by forward=, so that it is run "
            f"without a cache, token by token; that takes do_sample and temperature, not {', '.join(sorted(others))}."
        )
    written, log_p = prompt, []
    text = text_of(prompt, model)
    for _ in track(range(count), "writing"):
        scores = log_probabilities(_scores(written, model, forward, text)[0, -1].double())
        heat = float(options.get("temperature", 1.0))
        chosen = (
            torch.multinomial((scores / heat).softmax(0), 1) if options.get("do_sample") else scores.argmax(0, True)
        )
        log_p.append(scores[chosen])
        written = continued(written, text, chosen)
        if int(chosen) == ends:
            break
    ids = written.tensors()[str(text)][0, text.count :]
    how = "sampled" if options.get("do_sample") else "greedy"
    return Written(written, str(text), text.count - 1, text.ids[0], ids, torch.cat(log_p), f"{how}, without a cache")  # type: ignore[index]


def _scores(inputs: Inputs, model: nn.Module, forward: Forward | None, text: InputSequence) -> torch.Tensor:
    scores = main_output(inputs.run(model, forward))
    if scores.ndim != 3:
        raise TargetError(
            f"the output {tuple(scores.shape)} of {type(model).__name__} is not (batch, places, tokens): a text is "
            f"written from scores of tokens after each place of {text}."
        )
    return scores


def _write_by_generate(
    model: nn.Module, own: Callable[..., Any], prompt: Inputs, count: int, options: Mapping[str, Any]
) -> Written:
    """Call the `generate` of transformers.

    Raises:
        OptionError: when several texts are asked for, or none is written.
    """
    prompt = by_name(prompt, model)
    given = prompt.kwargs
    settings: dict[str, Any] = {"max_new_tokens": count, "do_sample": False, "num_beams": 1}
    config: Any = model.generation_config
    if config.pad_token_id is None:
        end = config.eos_token_id
        settings["pad_token_id"] = end[0] if isinstance(end, (list, tuple)) else 0 if end is None else end
    settings |= options
    if settings.get("num_return_sequences", 1) != 1:
        raise OptionError("one text at a time: leave num_return_sequences out, and give another seed= for each.")
    encoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    if prompt.batch != 1:
        refuse_several(prompt.batch)
    text = None if encoder else text_of(prompt, model)
    with counted_tokens(settings["max_new_tokens"]) as count_tokens:
        settings["stopping_criteria"] = [*(settings.get("stopping_criteria") or ()), count_tokens]
        out = own(**given, **settings, return_dict_in_generate=True, output_logits=True)
    row = out.sequences[0]
    how = "sampled" if settings["do_sample"] else "greedy"
    how = f"beam search, {settings['num_beams']} beams" if settings["num_beams"] > 1 else how
    if text is None:
        start = len(row) - len(out.logits) if settings["num_beams"] == 1 else 1
        name, inputs = "decoder_input_ids", Inputs((), {**given, "decoder_input_ids": row[None, :-1]})
        ids, first, before = row[start:], start - 1, row[:start]
    else:
        assert text.ids is not None
        before, name, first = text.ids[0], str(text), text.count - 1
        same = len(row) > text.count and bool((row[: text.count] == before).all())
        ids = row[text.count :] if same else row[-len(out.logits) :]
    ids = _ended(ids, settings.get("eos_token_id", config.eos_token_id))
    if not len(ids):
        raise OptionError(f"{type(model).__name__} ended the text at once; give max_new_tokens=, or another prompt.")
    if text is not None:
        inputs = continued(prompt, text, ids)
    beams = getattr(out, "beam_indices", None)
    steps = range(len(ids))
    rows = [0] * len(ids) if beams is None else beams[0, : len(ids)].tolist()
    found = [log_probabilities(out.logits[k][rows[k]].double())[ids[k]] for k in steps]
    return Written(inputs, name, first, before, ids, torch.stack(found), how)


@contextlib.contextmanager
def counted_tokens(most: int | None) -> Iterator[Callable[..., torch.Tensor]]:
    """Show how many tokens the `generate` of transformers has written.

    Args:
        most: the largest number of tokens, if there is one.

    Yields:
        A stopping criterion, which stops nothing.
    """
    with counting("writing", most, unit="tokens") as done:

        def count(ids: torch.Tensor, scores: torch.Tensor, **others: Any) -> torch.Tensor:
            done(1)
            return torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

        yield count


def by_name(prompt: Inputs, model: nn.Module) -> Inputs:
    """Return the arguments by the names that the model's `forward` has for them."""
    given = dict(zip(inspect.signature(model.forward).parameters, prompt.args, strict=False))
    return dataclasses.replace(prompt, args=(), kwargs={**given, **prompt.kwargs}, names=()) if given else prompt


def _ended(ids: torch.Tensor, ends: Any) -> torch.Tensor:
    """The ids up to the first that ends a text; behind it is padding."""
    stops = torch.tensor([] if ends is None else ends).flatten()
    found = torch.isin(ids.cpu(), stops).nonzero().flatten()
    return ids[: int(found[0]) + 1] if len(found) else ids


def follow(model: nn.Module, prompt: Inputs, ids: torch.Tensor) -> Written:
    """Return a text that is given as if a model had written it after a prompt."""
    text = text_of(prompt, model)
    assert text.ids is not None
    ids = ids.to(text.ids)
    return Written(continued(prompt, text, ids), str(text), text.count - 1, text.ids[0], ids, None, "given")


def text_of(inputs: Inputs, model: nn.Module) -> InputSequence:
    """Return the only row of tokens among the inputs, which a text continues.

    Raises:
        InputError: when there is none, or several, or they are several samples or end with padding.
    """
    found = [one for one in sequences(inputs) if one.ids is not None]
    if len(found) != 1:
        named = [one for one in found if str(one) in ("decoder_input_ids", "input_ids")]
        found = named[:1] if len(named) == 1 else sorted(named, key=lambda one: str(one) == "input_ids")[:1] or found
    if len(found) != 1 or found[0].ids is None:
        raise InputError(
            f"{type(model).__name__} is given {inputs}: a text continues one row of token ids, input_ids=. Give a text "
            "to a Lens with a tokenizer, or its encoding."
        )
    (text,) = found
    if len(found[0].ids) != 1:
        refuse_several(len(found[0].ids))
    if text.used is not None and not bool(text.used[0, -1]):
        raise InputError(f"{text} ends with padding, and a text continues its last token: leave the padding out.")
    return text


def refuse_several(count: int) -> None:
    """Refuse a batch.

    Raises:
        InputError: always.
    """
    raise InputError(
        f"{count} prompts were given, and texts of several lengths are not one tensor: "
        "[lens.generate(prompt) for prompt in prompts]."
    )


def continued(inputs: Inputs, text: InputSequence, ids: torch.Tensor) -> Inputs:
    """Return the inputs with more tokens after a text: positions count on, masks and kinds repeat their last entry."""
    tensors, new = inputs.tensors(), {}
    for name in text.names:
        x = tensors[name]
        more = x[:, -1:].repeat(1, len(ids), *[1] * (x.ndim - 2))
        if name == str(text):
            more = ids.to(x).unsqueeze(0)
        elif "position" in name:
            more = more + torch.arange(1, len(ids) + 1, device=x.device)
        new[name] = torch.cat([x, more], dim=1)
    return inputs.replace(new)


def shortened(inputs: Inputs, name: str, less: int) -> Inputs:
    """Return the inputs without the last tokens of a text."""
    (text,) = (one for one in sequences(inputs) if name in one.names)
    tensors = inputs.tensors()
    return inputs.replace({one: tensors[one][:, : tensors[one].shape[1] - less] for one in text.names})


def all_scores(written: Written, model: nn.Module, forward: Forward | None) -> torch.Tensor:
    """Return the log-probabilities of every token at every step, `(steps, tokens)` float64, from one forward pass.

    Raises:
        TargetError: when the output has no scores at each place of the text.
    """
    scores = main_output(written.inputs.run(model, forward))
    places = written.inputs.tensors()[written.sequence].shape[1]
    if scores.ndim != 3 or scores.shape[1] < written.first + len(written.ids):
        raise TargetError(
            f"{type(model).__name__} returned {tuple(scores.shape)} for {places} tokens, which is not a score of every "
            "token at each of these places: its steps cannot be read from one forward pass."
        )
    return log_probabilities(scores[0, written.first : written.first + len(written.ids)].double())
