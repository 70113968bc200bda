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
# # Which word drew this?
#
# A diffusion model makes a picture from noise in many steps, and reads a prompt in each of them. Which word made which
# part of the picture? In which step, and through which layers?
#
# The model here is small and comes with the package: a U-Net with cross-attention that was trained for 21 minutes on
# pictures of two digits. It gets colors and places right, and the shape of a digit often not.

# %%
import functools

import torch

from layerlens import Lens
from layerlens.demo.digit_diffusion import load_digit_diffusion, sample, tokens

prompt = "a red three left of a blue seven"
noise = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(4))
lens = Lens(load_digit_diffusion())
loop = functools.partial(sample, steps=10)  # sample(model, noise, words) calls the model ten times

# %% [markdown]
# ## Words and steps
#
# The score is the contrast of the finished picture. Relevance goes back through all ten steps, and a ledger shows that
# the parts add up.

# %%
found = lens.explain_sampling((noise, tokens(prompt)), loop=loop, words=prompt.split(), maps=8, level="step")
found.plot()

# %%
print(f"relative residual of the ledger: {float(found.ledger.relative.max()):.0e}")
for word, value in found.ranked()[:4]:
    print(f"{value:7.4f} {word}")

# %% [markdown]
# ## A region
#
# Ask for the left half of the picture, and for the right half.

# %%
for side, box in (("left", (0, 0, 24, 12)), ("right", (0, 12, 24, 24))):
    half = lens.explain_sampling((noise, tokens(prompt)), loop=loop, words=prompt.split(), target=box, level="step")
    print(f"{side}: {half.ranked()[0][0]}")
half.plot(title="The right half")

# %% [markdown]
# ## Is that true?
#
# Change one word, keep the noise, draw again: the pixels that change are what the word did. This is the truth that
# `docs/diffusion.md` scores maps by.

# %%
other = tokens("a green three left of a blue seven")
with torch.no_grad():
    before, after = (loop(lens.model, noise, words) for words in (tokens(prompt), other))
change = (after - before).abs().mean(dim=1)[0]
print(f"change on the left {float(change[:, :12].mean()):.3f}, on the right {float(change[:, 12:].mean()):.3f}")

# %% [markdown]
# The map of the word *red*, and the change, on the same grid: how well do they agree?

# %%
grid = torch.nn.functional.adaptive_avg_pool2d(change[None, None], 8)[0, 0]
agreement = torch.stack([found.map_of("red").abs().flatten(), grid.flatten()]).argsort(dim=1).argsort(dim=1)
correlation = float(torch.corrcoef(agreement.double())[0, 1])
print(f"rank correlation {correlation:.2f}")

# %% [markdown]
# ## Layers over steps
#
# The share of each layer in each step: what has to be decided early passes other layers than what is drawn at the end.

# %%
found.layers.plot(title="Share of relevance")

# %%
found.matrix("change").plot(title="Change of the output until the next step")

# %%
print(found.explain())

# %% [markdown]
# What this page says, checked:

# %%
assert float(found.ledger.relative.max()) < 1e-5
assert half.ranked()[0][0] == "blue" and found.ranked()[0][0] == "red"
assert float(change[:, :12].mean()) > 5 * float(change[:, 12:].mean()) and correlation > 0.5
