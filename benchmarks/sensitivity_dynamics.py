"""What the analyses of layer dynamics cost, in forwards: the samples that pass the model, and the time.

python -m benchmarks.sensitivity_dynamics
"""

import torch

from layerlens import geometry, health, logit_lens, nonlinearity, similarity
from layerlens.analyzers.common.features.feature_batches import distinct
from layerlens.demo.embedded import DigitNet, load_digit_net
from layerlens.demo.train_digits import make_scenes, split_digits
from layerlens.inputs.inputs import as_inputs

from .timing import medians

SAMPLES = 128
BATCH = 32
BLOCKS = 12


def passed(model, call):
    """How many samples pass the model in a call."""
    seen = []
    handle = model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    try:
        call()
    finally:
        handle.remove()
    return sum(seen)


class Block(torch.nn.Module):
    """A residual block."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.GELU())

    def forward(self, x):
        """Add what the inner layers make of `x` to it."""
        return x + self.inner(x)


class Stack(torch.nn.Module):
    """Blocks of one shape and a head."""

    def __init__(self):
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = torch.nn.Linear(256, 10)

    def forward(self, x):
        """Pass the blocks, then the head."""
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def rows(runs: int = 5) -> list[tuple[str, float, float, str]]:
    """(what, stated forwards of the data, measured time over a forward of the data, samples that passed, counted)."""
    _, test = split_digits(0)
    images, labels, _ = make_scenes(test, range(SAMPLES), seed=5)
    x = images.float() / 255
    pairs = list(zip(x, labels.tolist(), strict=True))
    model, twin = load_digit_net(), DigitNet().eval()
    layers = distinct(model, as_inputs(x[:1]), None)
    size = {"batch_size": BATCH}
    first = 1 / SAMPLES + BATCH / SAMPLES  # one sample, and the first batch once more, to learn what there is
    once = BATCH / SAMPLES  # layers by name: the first batch once more

    def plain(of, given):
        with torch.no_grad():
            for start in range(0, len(given), BATCH):
                of(given[start : start + BATCH])

    stack, rows_ = Stack().eval(), torch.randn(SAMPLES, 256)
    every = [path for path, _ in model.named_modules() if path]
    table = {
        "similarity, 27 layers": (model, 1 + first, lambda: similarity(model, x, **size)),
        "similarity, 27 layers, no null": (model, 1 + first, lambda: similarity(model, x, permutations=0, **size)),
        "similarity with another model": (model, 1 + first, lambda: similarity(model, x, other=twin, **size)),
        "geometry, 27 layers": (model, 1 + first, lambda: geometry(model, x, labels=labels, **size)),
        "health, 27 layers": (model, 1 + first, lambda: health(model, x, **size)),
        "health, layers by name": (model, 1 + once, lambda: health(model, x, layers, **size)),
        "health with gradients (F + B more)": (model, 2 + first, lambda: health(model, pairs, target="loss", **size)),
        "health with null": (model, 2 + 2 * once + 1 / SAMPLES, lambda: health(model, x, null=True, **size)),
        "nonlinearity, 31 layers": (model, 1 + first, lambda: nonlinearity(model, x, every, **size)),
        "logit lens, 12 blocks of one width": (stack, 7.0, lambda: logit_lens(stack, rows_)),
    }
    found = []
    for name, (of, stated, call) in table.items():
        given = rows_ if of is stack else x
        counted = passed(of, call) / SAMPLES
        seconds = medians({"call": call, "forward": lambda of=of, given=given: plain(of, given)}, runs)
        found.append((name, stated, seconds["call"] / seconds["forward"], f"counted {counted:.2f} forwards"))
    return found


if __name__ == "__main__":
    print("| analysis | stated forwards | counted | time over a forward |")
    print("| --- | ---: | ---: | ---: |")
    for name, stated, ratio, remark in rows():
        print(f"| {name} | {stated:.2f} | {remark.split()[1]} | {ratio:.1f} |")
