"""The log-probability of every token of an answer after some prompts, which may have different lengths."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

import torch
from torch import nn

from layerlens.errors import InputError, TargetError, warn
from layerlens.inputs.inputs import Forward, Inputs
from layerlens.inputs.token_texts import decoded_texts, texts_by_offsets, token_names
from layerlens.model.borrowed import borrowed
from layerlens.model.placement import home
from layerlens.model.trees import describe
from layerlens.progress import track
from layerlens.targets.outputs import log_probabilities, main_output

from .prompts import Prompt
from .text_parts import Range
from .written import counted_tokens

TOKENS_AT_ONCE: Final = {"cpu": 2048}
"""Tokens in one pass by kind of device, where `batch_size` is `"auto"`; others run 32,768."""


class AnswerScorer:
    """The log-probability of an answer after prompts that a tokenizer reads.

    Rows of different lengths are padded on the right, where causal models and encoders with a mask do not see it: a
    prompt then has the scores that it has alone, which is tried on a few tokens. A model that does see it gets the rows
    one by one.

    Args:
        model: the model.
        tokenizer: as a `Lens` takes it.
        forward: called instead of the model.

    Attributes:
        decoder: whether the model has a decoder that reads the answer, next to an encoder that reads the prompt.
        answer: ids of the answer.
    """

    def __init__(self, model: nn.Module, tokenizer: Callable[..., Any], forward: Forward | None) -> None:
        self.model, self.tokenizer, self.forward = model, tokenizer, forward
        config = getattr(model, "config", None)
        takes = _parameters(model.forward)
        self.decoder = bool(getattr(config, "is_encoder_decoder", "decoder_input_ids" in takes))
        self.answer: list[int] = []
        own = takes if forward is None else ()
        self._options = {"use_cache": False} if "use_cache" in own else {}
        self._narrow = "logits_to_keep" in own
        self._apart: bool | None = None
        if self.decoder:
            self._start = _starts(model, tokenizer)

    def encode(self, prompt: Prompt, text: str | None = None) -> list[int]:
        """Return the ids of a prompt, or of `text` instead; an empty one has the token that texts start with.

        Raises:
            InputError: when the tokenizer returns no ids, or has no such token.
        """
        ids: list[int] = self._encoding(prompt, text)["input_ids"][0].tolist()
        if ids:
            return ids
        if (first := self.first) is None:
            raise InputError(
                "without its sources the prompt has no tokens, and the tokenizer no token that texts start with: give "
                "context= and a question, so that some text stays."
            )
        return [first]

    @property
    def first(self) -> int | None:
        """The token that texts start with, which an empty prompt has; None if the tokenizer has none."""
        known = [getattr(self.tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos", "pad")]
        return next((int(index) for index in known if index is not None), None)

    def _encoding(self, prompt: Prompt, text: str | None = None) -> Any:
        options = {"add_special_tokens": False} if prompt.chat else {}
        encoding = self.tokenizer([prompt.text if text is None else text], return_tensors="pt", **options)
        if not isinstance(encoding.get("input_ids"), torch.Tensor) or encoding["input_ids"].ndim != 2:
            raise InputError(f"the tokenizer returns no input_ids (batch, token), but {describe(dict(encoding))}.")
        self._masked = "attention_mask" in encoding
        return encoding

    def token_ranges(self, prompt: Prompt) -> list[Range | None]:
        """Return the characters of each token of a prompt without white space around; None for special tokens.

        Parts of one character have its range.

        Raises:
            InputError: when the tokens cannot be found in the text.
        """
        text, encoding = prompt.text, self._encoding(prompt)
        ids = encoding["input_ids"]
        fast = getattr(encoding, "encodings", None)
        names = token_names(self.tokenizer, ids)
        if fast and names is not None:
            offsets: list[Range] = list(fast[0].offsets)
            found = [_inner(text, one) if one[0] < one[1] else None for one in offsets]
        else:
            found = _searched(text, token_texts(self.tokenizer, ids))
        places = [place for place, one in enumerate(found) if one is not None]
        for place, after in itertools.pairwise(places):  # parts of one character
            one, other = found[place], found[after]
            if one is not None and other is not None and other[0] < one[1]:
                found[after] = one
        return found

    def read_answer(self, prompt: Prompt, answer: str) -> list[int]:
        """Return the ids of a given answer, as they continue the prompt.

        Raises:
            InputError: when the answer has no tokens.
        """
        if self.decoder:
            ids = _ids(self.tokenizer, answer)
        else:
            before = self.encode(prompt)
            both = self.encode(prompt, prompt.text + answer)
            ids = both[len(before) :] if both[: len(before)] == before else _ids(self.tokenizer, answer)
        ids = self._without_special(ids)
        if not ids:
            raise InputError(f"the answer {answer!r} has no tokens.")
        if not self.decoder and prompt.text[-1:].isalnum() and answer[:1].isalnum():
            warn(
                f"the answer {answer[:40]!r} continues the last word of the prompt, {prompt.text[-20:]!r}: if a space "
                "is between them, give it, answer=' ...'."
            )
        return ids

    def generate(self, prompt: Prompt, most: int) -> tuple[list[int], bool]:
        """Return the ids of the model's own answer, by greedy decoding, and whether the model ended it.

        Raises:
            InputError: when it is empty.
        """
        before = self.encode(prompt)
        ends = self._ends()
        with borrowed(self.model, grad=False):
            if self.forward is None and hasattr(self.model, "generation_config"):
                given = self._rows([before], [])[0]
                own: dict[str, Any] = {"do_sample": False, "num_beams": 1, "max_new_tokens": most}
                pad = getattr(self.tokenizer, "pad_token_id", None)
                pad = next(iter(ends), None) if pad is None else pad
                kept = {name: given[name] for name in given if not name.startswith("decoder")}
                with counted_tokens(most) as count:
                    own |= dict.fromkeys(("temperature", "top_p", "top_k"))
                    own |= {"pad_token_id": pad, "stopping_criteria": [count]}
                    out = self.model.generate(**kept, **own)  # type: ignore[operator]
                ids = out[0].tolist()[len(self._start if self.decoder else before) :]
            else:
                ids = []
                for _ in track(range(most), "writing"):
                    tensors, last = self._rows([before], ids)
                    logits = main_output(Inputs((), tensors).run(self.model, self.forward))
                    ids.append(int(logits[0, last].argmax()))
                    if ids[-1] in ends:
                        break
        ended = any(index in ends for index in ids)
        ids = self._without_special(ids)
        if not ids:
            raise InputError("the model's answer is empty: it ends at once. Give an answer, answer='...'.")
        return ids, ended

    def _ends(self) -> set[int]:
        ends = [getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)]
        ends += [getattr(self.tokenizer, "eos_token_id", None)]
        flat = [index for one in ends for index in (one if isinstance(one, (list, tuple)) else [one])]
        return {int(index) for index in flat if index is not None}

    def _without_special(self, ids: list[int]) -> list[int]:
        """The ids of an answer without the special tokens that end it."""
        special = {*getattr(self.tokenizer, "all_special_ids", ()), *self._ends()}
        end = next((place for place, index in enumerate(ids) if index in self._ends()), len(ids))
        ids = ids[:end]
        while ids and ids[-1] in special:
            ids = ids[:-1]
        return ids

    def _rows(self, prompts: Sequence[list[int]], answer: list[int]) -> tuple[dict[str, Any], int]:
        """The inputs of the model, and the place that predicts what follows the answer in the first row."""
        device = home(self.model)
        rows = prompts if self.decoder else [[*ids, *answer] for ids in prompts]
        longest = max(map(len, rows))
        pad = getattr(self.tokenizer, "pad_token_id", None) or 0
        padded = [row + [pad] * (longest - len(row)) for row in rows]
        given: dict[str, Any] = {"input_ids": torch.tensor(padded, device=device)}
        if self._masked:
            mask = [[1] * len(row) + [0] * (longest - len(row)) for row in rows]
            given["attention_mask"] = torch.tensor(mask, device=device)
        if self.decoder:
            read = [*self._start, *answer]
            given["decoder_input_ids"] = torch.tensor([read] * len(rows), device=device)
            return given, len(read) - 1
        return given, len(rows[0]) - 1

    def inputs(self, prompts: Sequence[list[int]], answer: list[int] | None = None) -> tuple[Inputs, torch.Tensor]:
        """Return the inputs of the model for prompts with the answer, and the places of the output that predict it.

        Args:
            prompts: ids of each prompt.
            answer: ids of the answer; None for the whole one.

        Returns:
            Inputs, and `(prompts, answer tokens)` indices into the places of the output.
        """
        answer = self.answer if answer is None else answer
        given, _ = self._rows(prompts, answer[:-1])
        if self.decoder:
            places = torch.arange(len(answer)).expand(len(prompts), -1) + len(self._start) - 1
        else:
            places = torch.tensor([len(ids) - 1 for ids in prompts])[:, None] + torch.arange(len(answer))
            if self._narrow:
                first = int(places.min())
                given["logits_to_keep"] = torch.arange(first, int(places.max()) + 1, device=home(self.model))
                places = places - first
        return Inputs((), {**given, **self._options}), places

    def scores(self, output: object, places: torch.Tensor, answer: list[int] | None = None) -> torch.Tensor:
        """Return the log-probability of each token of the answer, `(prompts, answer tokens)`.

        Raises:
            TargetError: when the output has no score of every token at each place.
        """
        logits = main_output(output)
        answer = self.answer if answer is None else answer
        if logits.ndim != 3 or logits.shape[1] <= int(places.max()) or logits.shape[2] <= max(answer):
            raise TargetError(
                f"the score of an answer needs the logits of every token at each place, (batch, place, token); the "
                f"model returned {describe(logits)}. Lens(model, forward=...) may return them."
            )
        ids = torch.tensor(answer, device=logits.device).expand(len(logits), -1)
        before = places.to(logits.device)[:, :, None].expand(-1, -1, logits.shape[2])
        wide = torch.promote_types(logits.dtype, torch.float32)
        return log_probabilities(logits.gather(1, before).to(wide)).gather(2, ids.unsqueeze(2)).squeeze(2)

    def __call__(
        self, prompts: Sequence[list[int]], batch_size: int | Literal["auto"], done: Callable[[int], object]
    ) -> torch.Tensor:
        """Return the log-probability of each token of the answer after each prompt, `(prompts, tokens)` in float64.

        Args:
            prompts: ids of each prompt.
            batch_size: prompts in one pass, or `"auto"`.
            done: is called with the number of prompts of each pass.
        """
        found = torch.zeros(len(prompts), len(self.answer), dtype=torch.float64)
        order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
        with borrowed(self.model, grad=False):
            while order:
                count = self._count([len(prompts[row]) for row in order], batch_size)
                rows, order = order[-count:], order[:-count]
                if len({len(prompts[row]) for row in rows}) > 1 and self._sees_padding([prompts[row] for row in rows]):
                    rows, order = rows[-1:], order + rows[:-1]
                inputs, places = self.inputs([prompts[row] for row in rows])
                output = inputs.run(self.model, self.forward)
                found[rows] = self.scores(output, places).detach().double().cpu()
                done(len(rows))
        return found

    def _count(self, lengths: list[int], batch_size: int | Literal["auto"]) -> int:
        """How many of the longest rows run at once; the last length is the largest."""
        if batch_size != "auto":
            return int(batch_size)
        device = home(self.model)
        most = TOKENS_AT_ONCE.get("cpu" if device is None else device.type, 32768)
        return max(1, most // (lengths[-1] + len(self.answer)))

    def _sees_padding(self, prompts: Sequence[list[int]]) -> bool:
        """Whether padding on the right changes the scores of a row, found once, on a few tokens.

        Warns:
            UserWarning: if it does.
        """
        if self._apart is None:
            long = max(prompts, key=len)[:12]
            short, answer = long[: max(1, len(long) // 2)], self.answer[:4]
            scores = []
            for rows in ([short], [short, long]):
                inputs, places = self.inputs(rows, answer)
                scores.append(self.scores(inputs.run(self.model, self.forward), places, answer)[0])
            narrow = any(one.dtype.itemsize < 4 for one in self.model.parameters() if one.is_floating_point())
            limit = (0.05 if narrow else 1e-3) * (1 + float(scores[0].abs().max()))
            self._apart = not float((scores[0] - scores[1]).abs().max()) <= limit
            if self._apart:
                warn(
                    f"{type(self.model).__name__} gives a text another score when it is padded on the right, so "
                    "prompts of different lengths are run one by one."
                )
        return self._apart


def token_texts(tokenizer: Callable[..., Any], ids: torch.Tensor) -> list[str]:
    """Return what each token of one text reads.

    Raises:
        InputError: when the tokenizer cannot decode.
    """
    read = decoded_texts(tokenizer, ids)
    if read is not None:
        return read[0]
    decode = getattr(tokenizer, "decode", None)
    names = token_names(tokenizer, ids)
    if decode is None and names is None:
        raise InputError("the tokenizer has neither decode nor convert_ids_to_tokens, so an answer cannot be read.")
    return [str(decode([index])) for index in ids[0].tolist()] if decode is not None else (names or [[]])[0]


def answer_texts(tokenizer: Callable[..., Any], ids: list[int], answer: str | None) -> list[str]:
    """Return what each token of an answer reads: together they are the answer, where it was given."""
    texts = token_texts(tokenizer, torch.tensor([ids]))
    if answer is None or "".join(texts) == answer:
        return texts
    encoding = tokenizer([answer], return_tensors="pt")
    fast, names = getattr(encoding, "encodings", None), token_names(tokenizer, torch.tensor([ids]))
    if fast and names is not None:
        own = [
            (index, offset) for index, offset in zip(fast[0].ids, fast[0].offsets, strict=True) if offset[0] < offset[1]
        ]
        if [index for index, _ in own] == ids:
            return texts_by_offsets(answer, names[0], [offset for _, offset in own])
    return texts


def _searched(text: str, pieces: Sequence[str]) -> list[Range | None]:
    """Where the texts of tokens are, one after the other; those that are not there are special tokens.

    Raises:
        InputError: when characters are left over.
    """
    found: list[Range | None] = []
    end = 0
    for piece in pieces:
        start = end + len(text[end:]) - len(text[end:].lstrip())
        shown = piece.strip()
        if piece and not shown:
            stop = end + len(piece)
            found.append((end, stop) if text.startswith(piece, end) else None)
            end = stop if found[-1] else end
        elif not piece:  # a part of the character before
            found.append(found[-1] if found else None)
        elif text.startswith(shown, start):
            end = start + len(shown)
            found.append((start, end))
        else:
            found.append(None)
    if text[end:].strip():
        raise InputError(
            f"the tokens could not be found in the text, from {text[end : end + 30]!r} on. A fast tokenizer of "
            "transformers knows where they are; by='ablation' and by='leave_one_out' with sources='sentence' need no "
            "places."
        )
    return found


def _inner(text: str, given: Range) -> Range:
    """A range without the white space at its ends, unless it is white space alone."""
    inner = text[given[0] : given[1]]
    if not inner.strip():
        return given
    return given[0] + len(inner) - len(inner.lstrip()), given[1] - len(inner) + len(inner.rstrip())


def _ids(tokenizer: Callable[..., Any], text: str) -> list[int]:
    read = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [int(index) for index in read]


def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


def _starts(model: nn.Module, tokenizer: Callable[..., Any]) -> list[int]:
    """The ids that a decoder reads before an answer.

    Raises:
        InputError: when they are unknown.
    """
    known = [getattr(model, "generation_config", None), getattr(model, "config", None), tokenizer]

    def first(*names: str) -> int | None:
        found = [getattr(one, name, None) for name in names for one in known]
        return next((int(index) for index in found if isinstance(index, int)), None)

    start = first("decoder_start_token_id", "bos_token_id")
    if start is None:
        raise InputError("the id that the decoder starts with is unknown: set model.config.decoder_start_token_id.")
    forced = first("forced_bos_token_id")
    return [start] if forced is None else [start, forced]
