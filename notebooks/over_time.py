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
# # When did a recurrent network see it?
#
# A recurrent network reads step by step and answers at the end. When did it see what its answer is based on, how did it
# keep that until the end, and does a map over time show it? Three networks: an LSTM and a combination of convolutions
# and an LSTM, trained on this page so that the right answer is known, and a speaker encoder with three LSTM layers and
# its trained weights (`pip install --no-deps -r requirements-models.txt`).

# %%
import dataclasses
import importlib.metadata

import torch
from torch import nn

from layerlens import Lens, plotting
from layerlens.demo.embedded import CLASS_NAMES
from layerlens.demo.train_digits import split_digits

train, test = ((torch.from_numpy(half.images).float(), torch.from_numpy(half.labels)) for half in split_digits(0))

# %% [markdown]
# ## An LSTM that has to remember
#
# It reads sixteen rows of eight pixels. Eight consecutive rows are a handwritten digit; the others are noise. The digit
# may begin anywhere.

# %%
LONG = 16


def series(half, count, generator):
    """Return rows `(count, 16, 8)`, labels, and whether each row belongs to the digit."""
    chosen = torch.randint(len(half[0]), (count,), generator=generator)
    start = torch.randint(0, LONG - 7, (count,), generator=generator)
    inside = (torch.arange(LONG) >= start[:, None]) & (torch.arange(LONG) < start[:, None] + 8)
    rows = 0.25 * torch.rand(count, LONG, 8, generator=generator)
    rows[inside] = half[0][chosen].flatten(0, 1)
    return rows, half[1][chosen], inside


class Reader(nn.Module):
    """Map rows to the scores of ten digits, from the last state."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(8, 64, batch_first=True), nn.Linear(64, 10)

    def forward(self, rows):
        return self.head(self.rnn(rows)[0][:, -1])


def fit(net, make, steps, rate):
    """Train, with fresh samples at every step."""
    generator, optimizer = torch.Generator().manual_seed(0), torch.optim.Adam(net.parameters(), lr=rate)
    for _ in range(steps):
        x, labels, _ = make(train, 64, generator)
        loss = nn.functional.cross_entropy(net(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


torch.manual_seed(0)
reader = fit(Reader(), series, 400, 1e-2)
rows, labels, inside = series(test, 200, torch.Generator().manual_seed(1))
with torch.no_grad():
    share = float((reader(rows).argmax(1) == labels).float().mean())
print(f"right in {share:.2f} of 200 new digits")

# %% [markdown]
# ## How it keeps what it saw
#
# A fused LSTM returns its hidden states but not its gates. `recurrent_states` recomputes all of them, and compares the
# result with what the layer returned.

# %%
lens = Lens(reader, class_names=CLASS_NAMES)
early = int(inside[:, 2].logical_and(~inside[:, 1]).nonzero()[0])  # a digit in the rows 2 to 9
x, label = rows[early : early + 1], int(labels[early])
states = lens.recurrent_states(x)
print(f"largest difference from the layer's own output: {float(states.checks['difference']):.1e}")
states.plot(quantities=["hidden", "forget_gate"], title=f"A {CLASS_NAMES[label]} in the rows 2 to 9")

# %%
with torch.no_grad():
    saying = reader.head(states.of("hidden")[0]).softmax(dim=1)[:, label]
    moved = states.of("hidden")[0].diff(dim=0).norm(dim=1)
print("probability of the digit after each row:", " ".join(f"{one:.2f}" for one in saying.tolist()))
print(f"mean step of the state: {float(moved[1:9].mean()):.2f} in the digit, {float(moved[-4:].mean()):.2f} at the end")

# %% [markdown]
# The state changes during the digit and settles after it, with the forget gates open: that is how a digit is kept until
# the end.
#
# ## Relevance over time
#
# The map should lie on the rows of the digit, and these are known here. Four methods, over sixty series; half of the
# rows are the digit's, so a map that knows nothing has half of its positive values there.

# %%
some, aim = rows[:60], labels[:60]
maps = {"relevance": lens.relevance(some, target=aim)}
for name in ("gradient", "input_x_gradient", "integrated_gradients"):
    maps[name] = lens.saliency(some, target=aim, method=name)
on_digit = {}
for name, found in maps.items():
    by_row = found.tensor.sum(dim=2).clamp(min=0)  # (series, row)
    on_digit[name] = float(((by_row * inside[:60]).sum(dim=1) / by_row.sum(dim=1)).mean())
    print(f"{name:22} {on_digit[name]:.2f}")

# %%
lens.relevance(x, target=label).plot(title=f"Relevance of rows for {CLASS_NAMES[label]}: the digit is in 2 to 9")

# %% [markdown]
# ## A video: convolutions and an LSTM
#
# Six frames of noise, one of them with a digit in it. Each frame goes through the same convolutions, an LSTM reads the
# result, and the answer is computed from the mean of its states.


# %%
def videos(half, count, generator):
    """Return videos `(count, 6, 1, 8, 8)`, labels, and the frame with the digit."""
    chosen = torch.randint(len(half[0]), (count,), generator=generator)
    when = torch.randint(0, 6, (count,), generator=generator)
    frames = 0.4 * torch.rand(count, 6, 1, 8, 8, generator=generator)
    frames[torch.arange(count), when, 0] = half[0][chosen]
    return frames, half[1][chosen], when


class Watcher(nn.Module):
    """Apply the same convolutions to each frame, and an LSTM over the frames."""

    def __init__(self):
        super().__init__()
        self.eye = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
        )
        self.rnn, self.head = nn.LSTM(256, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, frames):
        seen = torch.stack([self.eye(frame) for frame in frames.unbind(1)], dim=1)
        return self.head(self.rnn(seen)[0].mean(dim=1))


torch.manual_seed(0)
watcher = fit(Watcher(), videos, 250, 5e-3)
frames, digits, when = videos(test, 100, torch.Generator().manual_seed(1))
with torch.no_grad():
    named = float((watcher(frames).argmax(1) == digits).float().mean())
print(f"right in {named:.2f} of 100 new videos")

# %% [markdown]
# Two questions sound alike: in which frame did it *see* the digit, and at which step was the state *used*? Relevance of
# the pixels answers the first, Grad-CAM at the LSTM's output the second.

# %%
cinema = Lens(watcher, class_names=CLASS_NAMES)
pixels = cinema.relevance(frames, target=digits)
by_frame = pixels.tensor.sum(dim=(2, 3, 4)).clamp(min=0)
steps = cinema.grad_cam(frames, "rnn", target=digits).tensor
seen_at = float((by_frame.argmax(dim=1) == when).float().mean())
before = torch.arange(6) < when[:, None]
print(f"frame with the most relevance is the digit's: {seen_at:.2f}")
earlier, later = float(steps[before].mean()), float(steps[~before].mean())
print(f"Grad-CAM of the states: {earlier:.3f} before the digit's frame, {later:.3f} from it on")

# %%
chosen = int((when == 2).nonzero()[0])
one = dataclasses.replace(
    pixels,
    values=pixels.tensor[chosen],
    inputs=frames[chosen],
    score=pixels.score[chosen].repeat(6),
    axes=None,
    layers={},
)
plotting.overlay_grid(one, labels=[f"frame {place}" for place in range(6)], title="Relevance of the frames of a video")

# %% [markdown]
# The pixels matter in the frame with the digit, and the states from then on: the network reads its memory at every
# later step. A map over states is not a map over inputs.
#
# ## A speaker encoder
#
# Three LSTM layers turn 40 mel frequencies over time into a vector that describes a voice. A tone sounds in the middle
# third of faint noise, and the score is how much more the vector resembles that of the tone alone than that of noise
# alone.


# %%
class SpeakerEncoder(nn.Module):
    """Map mel frames `(batch, time, 40)` to an embedding `(batch, 256)` of length 1."""

    def __init__(self):
        super().__init__()
        self.lstm, self.linear, self.relu = nn.LSTM(40, 256, 3, batch_first=True), nn.Linear(256, 256), nn.ReLU()

    def forward(self, mels):
        raw = self.relu(self.linear(self.lstm(mels)[1][0][-1]))
        return raw / raw.norm(dim=1, keepdim=True)


encoder = SpeakerEncoder()
file = next(file for file in importlib.metadata.files("resemblyzer") if file.name == "pretrained.pt")
weights = torch.load(file.locate(), weights_only=True, map_location="cpu")["model_state"]
encoder.load_state_dict({name: value for name, value in weights.items() if not name.startswith("similarity")})
voice = Lens(encoder.eval())
noise = 0.1 * torch.rand(1, 60, 40, generator=torch.Generator().manual_seed(0))
mels = noise.clone()
mels[:, 20:40, 5:15] += 1
with torch.no_grad():
    direction = encoder(mels[:, 20:40]) - encoder(noise)


def tone_not_noise(embedding):
    """Return how much more the embedding resembles the tone than the noise."""
    return (embedding * direction).sum(dim=1)


heard = voice.relevance(mels, target=tone_not_noise)
heard.plot(width=4.5, title="Relevance of mel frames for the tone: it sounds from 20 to 39")

# %%
lost, held = {}, {}
for name, start in (("before", 0), ("tone", 20), ("after", 40)):
    silent = mels.clone()
    silent[:, start : start + 20] = 0
    with torch.no_grad():
        lost[name] = float(tone_not_noise(encoder(mels)) - tone_not_noise(encoder(silent)))
    held[name] = float(heard.tensor[:, start : start + 20].sum())
    print(f"{name:7} relevance {held[name]:+.3f}, lost without it {lost[name]:+.3f}")

# %% [markdown]
# The tone is evidence for itself, and the noise around it against. But look at the last third: it has little relevance,
# and matters most when it is silenced. Relevance divides up the original run; silence is another run, in which the
# state left by the earlier frames is carried on. With recurrent networks, do both.
#
# The checks below hold for every run of this page.

# %%
assert share > 0.85 and named > 0.85
assert float(states.checks["difference"]) < 1e-4 and float(moved[1:9].mean()) > 2 * float(moved[-4:].mean())
assert min(on_digit["relevance"], on_digit["integrated_gradients"]) > 0.9 > 0.75 > on_digit["gradient"]
assert seen_at > 0.95 and later > 10 * earlier
assert held["tone"] > 0 > held["before"] and lost["tone"] > 0 > lost["before"]
assert lost["after"] == min(lost.values()) and abs(held["after"]) < 0.5 * abs(held["before"])
