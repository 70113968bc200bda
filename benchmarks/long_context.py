"""Relevance of a long text: peak memory and time beside those of gradient x input, with and without checkpoints.

    python -m benchmarks.long_context [tokens]

A random Llama with fused attention; every number in a process of its own, where nothing is left from another one.
"""

import itertools
import subprocess
import sys
import time

import torch

from benchmarks.memory import peak
from layerlens import relevance, saliency

METHODS = {
    "gradient x input": lambda model, x: saliency(model, x, target=last, method="input_x_gradient"),
    "relevance, cp": lambda model, x: relevance(model, x, target=last, rules="cp"),
    "relevance, attn": lambda model, x: relevance(model, x, target=last, rules="attn"),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def last(output):
    """The largest logit at the last token, (batch,)."""
    return output.logits[:, -1].max(dim=-1).values


def llama(layers, tokens, dtype, checkpointed):
    """A random Llama 256 wide."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=256, intermediate_size=688, num_hidden_layers=layers, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=256, max_position_embeddings=tokens, use_cache=False, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(dtype).eval()
    if checkpointed:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model


def measure(method, layers, tokens, dtype, checkpointed):
    """MiB by which the process grows, seconds, and a sum that tells one map from another."""
    model = llama(layers, tokens, DTYPES[dtype], checkpointed)
    x = torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(0))
    METHODS[method](model, x[:, :64])  # what is imported and allocated once
    found = []
    start = time.perf_counter()
    grown = peak(lambda: found.append(METHODS[method](model, x)))
    return grown / 2**20, time.perf_counter() - start, float(found[0].values.double().abs().sum())


def main():
    """Print the table."""
    tokens = sys.argv[1] if len(sys.argv) > 1 else "4096"
    print(f"{tokens} tokens, torch {torch.__version__}, {torch.get_num_threads()} thread(s)")
    print(f"{'':18}{'layers':>7}{'type':>10}  {'plain':>18}{'checkpointed':>18}   sum of |values|, both")
    for dtype, layers, method in itertools.product(DTYPES, ("4", "12"), METHODS):
        cells, sums = [], []
        for checkpointed in ("", "yes"):
            command = [sys.executable, "-m", "benchmarks.long_context", "one", method, layers, tokens, dtype]
            out = subprocess.run([*command, checkpointed], capture_output=True, text=True, check=True).stdout
            grown, seconds, total = out.split()[-3:]
            cells.append(f"{float(grown):,.0f} MiB {float(seconds):.1f} s")
            sums.append(total)
        print(f"{method:18}{layers:>7}{dtype:>10}  {cells[0]:>18}{cells[1]:>18}   {sums[0]} {sums[1]}", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["one"]:
        _, _, method, layers, tokens, dtype, checkpointed = sys.argv
        print(*measure(method, int(layers), int(tokens), dtype, bool(checkpointed)))
    else:
        main()
