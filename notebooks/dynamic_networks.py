# ---
# jupyter:
#   jupytext:
#     formats: py:percent,ipynb
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which route did it take?
#
# Some networks decide for each input how to run: they stop early if they are sure, or send the input to one of several
# experts. No two samples need to run the same layers. Which route did this sample take, where do two routes part, and
# what mattered along the route?
#
# Two such networks, trained on this page in seconds, on scikit-learn's handwritten digits.

# %%
import torch
from torch import nn

from layerlens import Lens, edits
from layerlens.demo.embedded import CLASS_NAMES
from layerlens.demo.train_digits import split_digits
from layerlens.results import Matrix

train, test = (
    (torch.from_numpy(half.images).float()[:, None], torch.from_numpy(half.labels)) for half in split_digits(0)
)


def noisy(pictures, size, generator):
    """Return pictures with noise of that size."""
    return (pictures + size * torch.randn(pictures.shape, generator=generator)).clamp(0, 1)


# %% [markdown]
# ## A network with early exits
#
# Four blocks, each followed by an exit that may answer. The first exit that is sure enough, with a probability of 0.9,
# does, and the rest of the network never runs.


# %%
class EarlyExit(nn.Module):
    """Map digits of 8 x 8 pixels to scores, with as many blocks as needed."""

    def __init__(self, depth=4, sure=0.9):
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()) for _ in range(depth))
        self.exits = nn.ModuleList(nn.Sequential(nn.Flatten(), nn.Linear(12 * 64, 10)) for _ in range(depth))
        self.sure = sure

    def answers(self, pictures):
        """Yield the scores of every exit, for training."""
        inside = self.stem(pictures)
        for block, leave in zip(self.blocks, self.exits, strict=True):
            inside = inside + block(inside)
            yield leave(inside)

    def forward(self, pictures):
        for scores in self.answers(pictures):
            if bool((scores.softmax(dim=1).amax(dim=1) > self.sure).all()):
                break
        return scores


torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
quick = EarlyExit()
optimizer = torch.optim.Adam(quick.parameters(), lr=2e-3)
for _ in range(300):
    chosen = torch.randint(len(train[0]), (64,), generator=generator)
    pictures = noisy(train[0][chosen], 0.4 * float(torch.rand((), generator=generator)), generator)
    loss = sum(nn.functional.cross_entropy(scores, train[1][chosen]) for scores in quick.answers(pictures))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
quick.eval()
lens = Lens(quick, class_names=CLASS_NAMES)

# %% [markdown]
# ## Which sample leaves where
#
# `route` runs the samples one by one, because a batch takes only one route, and records which layers ran. Here are a
# hundred clean digits, and the same digits with noise.

# %%
clean = test[0][:100]
dirty = noisy(clean, 0.4, generator)
labels = test[1][:100]


def exit_of(routes):
    """Return the number of the exit that each sample took."""
    return torch.tensor(
        [sum(path.startswith("exits") and path.count(".") == 1 for path in calls) for calls in routes.calls]
    )


taken = {"clean": exit_of(lens.route(clean)), "noisy": exit_of(lens.route(dirty))}
share = {name: torch.stack([(one == place).float().mean() for place in range(1, 5)]) for name, one in taken.items()}
left = Matrix(
    "share of the digits", ("clean", "noisy"), tuple(f"exit {place}" for place in range(1, 5)),
    torch.stack(list(share.values())), ("digits", "way out"), "1", False, "route", {},
)  # fmt: skip
left.plot(width="column", title="Where digits leave the network")

# %%
with torch.no_grad():
    named = torch.tensor([int(quick(one[None]).argmax()) for one in dirty])
for place in range(1, 5):
    here = taken["noisy"] == place
    if here.any():
        right = float((named[here] == labels[here]).float().mean())
        print(f"exit {place}: {int(here.sum()):3} noisy digits, {right:.2f} of them right")

# %% [markdown]
# Noise sends a third of the digits through the whole network, and the answers for these are right less often than for
# those that leave at once: the network knows what is hard. The last exit has to answer, sure or not.
#
# ## Where two routes part
#
# One digit, clean and with noise:

# %%
hard = int(((taken["noisy"] == 4) & (taken["clean"] == 1) & (named == labels)).nonzero()[0])
parts = lens.compare_routes(clean[hard : hard + 1], dirty[hard : hard + 1])
parts

# %% [markdown]
# ## Relevance along the route
#
# Relevance follows the operations that ran, so it flows back along the route that was taken. The ledger must balance on
# both routes, and layers that never ran hold no relevance.

# %%
short = lens.relevance(clean[hard : hard + 1], target=int(labels[hard]), layers=["blocks.0"])
long = lens.relevance(dirty[hard : hard + 1], target=int(labels[hard]), layers="blocks.?")
for name, found in (("clean", short), ("noisy", long)):
    ledger = found.ledger
    parts_of = f"{float(ledger.inputs):.2f} from the pixels + {float(ledger.additive):.2f} from constants"
    if float(ledger.absorbed) > 0.005:
        parts_of += f" + {float(ledger.absorbed):.2f} absorbed"
    print(f"{name}: score {float(ledger.score):.2f} = {parts_of}, unexplained {float(ledger.relative.max()):.0e}")
    print("   layers with relevance:", *found.layers)

# %%
short.plot(title=f"Clean {CLASS_NAMES[int(labels[hard])]}: one block")

# %%
long.plot(title=f"Noisy {CLASS_NAMES[int(labels[hard])]}: four blocks")

# %%
long.plot(kind="flow")

# %% [markdown]
# ## A mixture of experts
#
# A gate looks at the digit and sends it to one of four experts. Training does not say what an expert is for; it only
# keeps the gate from sending everything to the same one.


# %%
class Mixture(nn.Module):
    """Map digits to scores, each by one of four experts."""

    def __init__(self):
        super().__init__()
        self.gate = nn.Linear(64, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10)) for _ in range(4))

    def shares(self, flat):
        """Return the gate's probability of each expert."""
        return self.gate(flat).softmax(dim=1)

    def forward(self, pictures):
        flat = pictures.flatten(1)
        best = self.shares(flat).max(dim=1)
        scores = flat.new_zeros(len(flat), 10)
        for place, expert in enumerate(self.experts):
            mine = best.indices == place
            if mine.any():
                scores[mine] = best.values[mine, None] * expert(flat[mine])
        return scores


torch.manual_seed(0)
mixture = Mixture()
optimizer = torch.optim.Adam(mixture.parameters(), lr=5e-3)
for _ in range(500):
    chosen = torch.randint(len(train[0]), (128,), generator=generator)
    pictures, shares = train[0][chosen], mixture.shares(train[0][chosen].flatten(1))
    used = torch.nn.functional.one_hot(shares.argmax(dim=1), 4).float().mean(dim=0)
    balance = 4 * (used * shares.mean(dim=0)).sum()  # 1 when all are used alike
    loss = nn.functional.cross_entropy(mixture(pictures), train[1][chosen]) + 0.3 * balance
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
mixture.eval()
experts = Lens(mixture, class_names=CLASS_NAMES)
with torch.no_grad():
    right = float((mixture(test[0]).argmax(1) == test[1]).float().mean())
print(f"right in {right:.2f} of {len(test[0])} new digits")

# %% [markdown]
# ## What each expert is for
#
# The route says which expert ran for each of the test digits.

# %%
routes = experts.route(test[0], "experts.?")
chosen = torch.tensor([int(calls[0].rpartition(".")[2]) for calls in routes.calls])
counts = torch.stack([torch.bincount(test[1][chosen == place], minlength=10) for place in range(4)]).double()
used = Matrix(
    "share of the digit", tuple(f"expert {place}" for place in range(4)), CLASS_NAMES,
    counts / counts.sum(dim=0), ("expert", "digit"), "1", False, "route", {},
)  # fmt: skip
used.plot(width="page", title="Which expert a digit is sent to")

# %% [markdown]
# Zero, three, six and seven have an expert nearly to themselves; a one or a nine may go to either of two. What happens
# if the expert of a three returns zeros?

# %%
row = int((test[1] == 3).nonzero()[0])
three, mine = test[0][row : row + 1], int(chosen[row])
with torch.no_grad():
    whole = mixture(three)[0, 3]
    without = experts.run(three, edits={f"experts.{mine}": edits.zero()})[0, 3]
print(f"a three, sent to expert {mine}: score {float(whole):.2f}, without that expert {float(without):.2f}")
others = sum(p.numel() for place, expert in enumerate(mixture.experts) if place != mine for p in expert.parameters())
print(f"{others:,} parameters of the other experts took no part")

# %% [markdown]
# The relevance of four digits, each along its own expert, and what each ledger leaves unexplained:

# %%
rows = [int((chosen == place).nonzero()[0]) for place in range(4)]
found = experts.relevance(test[0][rows], target=test[1][rows])
print("unexplained:", " ".join(f"{value:.0e}" for value in found.ledger.relative.tolist()))
names = [f"{CLASS_NAMES[int(test[1][row])]}, expert {int(chosen[row])}" for row in rows]
found.plot("grid", columns=2, labels=names, title="Relevance along four experts")

# %% [markdown]
# The checks below hold for every run of this page.

# %%
assert share["clean"][0] > 0.75 > 0.6 > share["noisy"][0] and share["noisy"][3] > 5 * share["clean"][3]
last, first = (float((named == labels)[taken["noisy"] == place].float().mean()) for place in (4, 1))
assert first > 0.9 > last
assert parts.after == "exits.0" and not parts.only_first and "blocks.3" in parts.only_second
assert max(float(one.ledger.relative.max()) for one in (short, long, found)) < 1e-5
assert right > 0.9 and float(whole) > 5 and float(without) == 0
assert int((used.values > 0.9).sum()) >= 3 and float(used.values.max(dim=0).values.min()) > 0.4
