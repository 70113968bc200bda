"""Results to draw, and what must hold of every figure."""

import dataclasses
import itertools

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from layerlens.results import (
    ActivationMaps,
    AdversarialExamples,
    AttentionWeights,
    Attribution,
    AttributionGraph,
    Contributions,
    Curve,
    Entry,
    FaithfulnessCurve,
    FeatureVisualization,
    Generation,
    GroupComparison,
    GroupEffects,
    LatentTraversal,
    LayerProfile,
    LayerRow,
    LayerTable,
    Leaderboard,
    Ledger,
    LogitLens,
    Matrix,
    Ranking,
    ReceptiveField,
    RecurrentStates,
    Relevance,
    SamplingAttribution,
    Steering,
    TopInputs,
    TrainingHistory,
)

LONG = "integrated gradients with 50 steps from a blurred baseline and 25 noisy copies of each, " * 2
PATHS = tuple(
    f"encoder.layer.{index // 3}.{('attention.self.query', 'attention.output.LayerNorm', 'output.dense')[index % 3]}"
    for index in range(66)
)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def attribution(*shape, method="gradient", signed=True, inputs=None, seed=0, **fields):
    values = random(*shape, seed=seed)
    score = torch.arange(1, shape[0] + 1) / 2
    base = Attribution(values if signed else values.abs(), None, signed, "score", "class 7", method, {}, score)
    return dataclasses.replace(base, inputs=inputs, **fields)


def images(batch=2, size=12, **options):
    return attribution(batch, 3, size, size, **{"inputs": random(batch, 3, size, size, seed=9), **options})


def profile(layers=10, series=(), error=True, null=True, signed=False):
    values = random(layers, len(series)) if series else random(layers)
    values = values if signed else values.abs() + 0.1
    return LayerProfile(
        "Jacobian norm", PATHS[:layers], values, "score", signed, "exact", {}, series,
        torch.full_like(values, 0.1) if error else None, torch.full_like(values, 0.3) if null else None,
    )  # fmt: skip


def ranking(items=10, series=(), error=True, null=True, interval=False, signed=False):
    values = random(items, len(series)) if series else random(items)
    values = values if signed else values.abs() + 0.1
    return Ranking(
        "drop of the score", tuple(f"blocks.{index // 9} head {index % 9}" for index in range(items)), values, "nat",
        signed, "mean ablation", {}, series, torch.full_like(values, 0.1) if error else None,
        torch.stack([values - 0.3, values + 0.2], dim=-1) if interval else None,
        0.05 * random(*values.shape, seed=1) if null else None,
    )  # fmt: skip


def grid(rows, columns, axes=("layer", "position"), signed=True, names=()):
    values = random(rows, columns)
    named = [tuple(f"{names[index % len(names)]}" if names else f"l{index}" for index in range(count))
             for count in (rows, columns)]  # fmt: skip
    return Matrix("effect", *named, values if signed else values.abs(), axes, "nat", signed, "patching", {})


def curve(series=("PGD",), points=5, error=True, null=True, seed=0):
    values = random(len(series), points, seed=seed)
    return Curve(
        "accuracy", "eps", torch.linspace(0, 1, points) ** 2, tuple(series), values, "1", "attack", {},
        torch.full_like(values, 0.1) if error else None, random(len(series), points, seed=1) if null else None,
    )  # fmt: skip


def history(steps=12, layers=9, quantity="gradient norm", every=5, logged=("loss",), names=PATHS):
    values = (3 * random(steps, layers)).exp().double()
    at = torch.arange(steps * every).double()
    told = {name: torch.stack([at, (-at / 40).exp() + row], dim=1) for row, name in enumerate(logged)}
    means = random(steps, layers, seed=1).double()
    return TrainingHistory(
        torch.arange(steps) * every, dict.fromkeys((quantity, "activation mean"), names[:layers]),
        {quantity: values, "activation mean": means}, told, torch.full((steps,), 16), "hooks on SGD.step", {},
    )  # fmt: skip


def ledger(layers=10, batch=1):
    entries = [Entry("input", "", "pixels", torch.full((batch,), -10.0))]
    for index, path in enumerate(PATHS[:layers]):
        entries.append(Entry("additive", path, "bias", random(batch, seed=index) * (9 if index % 7 == 0 else 1)))
        if index % 3 == 0:
            entries.append(Entry("absorbed", path, "offset", random(batch, seed=index + 500)))
    score = torch.stack([entry.amount for entry in entries]).sum(dim=0) + 1e-3
    return Ledger(score, tuple(entries))


def relevance(layers=10, batch=1):
    book = ledger(layers, batch)
    flow = LayerProfile("relevance", PATHS[:layers:2], random(len(PATHS[:layers:2])), "score", True, "x", {})
    maps = images(batch)
    fields = {field.name: getattr(maps, field.name) for field in dataclasses.fields(Attribution)}
    return Relevance(**{**fields, "score": book.score}, ledger=book, profile=flow)


def maps(*shape, layer="blocks.0", inputs=None, axes=("batch", "channel", "height", "width")):
    return ActivationMaps(layer, 0, random(*shape), tuple(range(shape[1])), axes[: len(shape)], inputs)


def top_inputs(units=3, ranks=4, size=12, channels=3, layer="blocks.0", regions=True, **fields):
    index = torch.arange(units * ranks).reshape(units, ranks)
    box = torch.tensor([[0, channels], [2, 7], [1, 9]]).repeat(units, ranks, 1, 1)
    base = TopInputs(
        layer, 0, "relevance", tuple(range(units)), index, random(units, ranks).double().sort(descending=True).values,
        torch.zeros(units, ranks, 2, dtype=torch.int64), box if regions else None,
        {int(one): random(channels, size, size, seed=int(one)) for one in index.flatten()}, 99, "class 7",
        "relevance (epsilon), sum over places", {},
    )  # fmt: skip
    return dataclasses.replace(base, **fields)


def made(*shape, axes=("batch", "channel", "height", "width"), bounds=(-1.0, 1.0), targets=None):
    values = random(*shape).tanh() if bounds else random(*shape)
    targets = tuple(f"class {index}" for index in range(shape[0])) if targets is None else targets
    curve = random(shape[0], 20).cumsum(dim=1)
    return FeatureVisualization(values, axes, bounds, targets, curve, curve[:, -1], "score", {"steps": 20})


def recurrent(steps=24, units=50, batch=2):
    names = ("hidden", "cell", "input_gate", "forget_gate", "cell_gate", "output_gate")
    run = {name: random(batch, steps, units, seed=seed) for seed, name in enumerate(names)}
    run = {
        name: values.sigmoid() if name in names[2::1] and name != "cell_gate" else values
        for name, values in run.items()
    }
    return RecurrentStates(
        "rnn", "LSTM", {"layer 0": run, "layer 0 reverse": run}, torch.tensor([steps, steps - 5][:batch]), {}
    )


def field(*size, layer="blocks.0"):
    place = tuple(4 for _ in size)
    boxes = torch.tensor([[3, 8]] * len(size)).expand(*(6 for _ in size), len(size), 2).clone()
    return ReceptiveField(layer, 0, boxes, size, place, random(2, *size).abs(), {}, random(2, 3, *size))


def traversal(*shape, rows=8, steps=5, move="set"):
    outputs, values = random(rows, steps, *shape), torch.linspace(-2, 2, steps)
    names = tuple(f"latent {row}" for row in range(rows))
    return LatentTraversal(names, values, move, outputs, outputs[0, 0], random(rows).abs(), {})


def attention(layers=2, heads=3, size=6, batch=2, **fields):
    weights = {PATHS[3 * row]: random(batch, heads, size, size, seed=row).softmax(-1) for row in range(layers)}
    return AttentionWeights("Net", weights, dict.fromkeys(weights, "softmax"), **fields)


def table(layers=6, run=True):
    rows = [LayerRow("", "Net", 1, "(1, 4)", 900, 0, 0.1)]
    seen = {""}
    for index, path in enumerate(PATHS[:layers]):
        parts = path.split(".")
        for depth in range(1, len(parts)):
            parent = ".".join(parts[:depth])
            if parent not in seen:
                seen.add(parent)
                rows.append(LayerRow(parent, "ModuleList", None, "", 100, 0, None))
        size = 1000 * (index + 1)
        rows.append(
            LayerRow(path, "Linear", 1 if run else None, "", size, size, 0.01 if run else None, activation=2**20)
        )
    return LayerTable("Net", tuple(rows), 1.0 if run else None)


def adversarial(*shape):
    inputs, eps = random(*shape), torch.tensor([0.1, float("inf"), 0.25])[: shape[0]].double()
    flags = eps.isfinite()
    classes = torch.arange(shape[0]), torch.arange(shape[0]) + 1
    return AdversarialExamples(
        inputs + 0.1 * random(*shape, seed=1), inputs, eps, flags, *classes, eps, "another class", "FGSM, linf", {}
    )


def faithfulness():
    shares = torch.linspace(0, 1, 5).double()
    return FaithfulnessCurve("insertion", shares, random(3, 5).double().sigmoid(), "blur", "probability", "cat", {})


def leaderboard():
    values = random(3, 2, 4).double()
    return Leaderboard(("a", "b", "random"), ("deletion", "ROAD"), values, (True, False), ("random",), "cat", {})


def effects():
    means, p = random(1, 2, 9).double(), torch.rand(1, 9, generator=torch.Generator().manual_seed(0)).double()
    parts = random(1, 9).double(), random(1, 9, seed=1).double(), random(1, 9, seed=2).abs().double()
    return GroupEffects("layer 0", ("unit",), ("a - b",), means, *parts, p, torch.ones(1).double(), "1")


def groups():
    found = {"stem": effects(), "head": effects()}
    return GroupComparison(("a", "b"), (4, 5), found, {"input": effects()}, profile(2), {}, "cat", "means", {})


def scored(name="insertion", samples=3, seed=0, **fields):
    shares = torch.linspace(0, 1, 9).double()
    scores = torch.rand(samples, 9, generator=torch.Generator().manual_seed(seed)).double().sort(dim=1).values
    base = FaithfulnessCurve(name, shares, scores, "blur", "probability", "class 7", {})
    return dataclasses.replace(base, **fields)


def board(methods=5, samples=8, metrics=("insertion",), higher=(True,), seed=0, names=None, target="class 7"):
    values = random(methods, len(metrics), samples, seed=seed).double() + torch.arange(methods, 0, -1)[:, None, None]
    names = tuple(f"method {row}" for row in range(methods)) if names is None else names
    return Leaderboard(names, metrics, values, higher, (names[1], names[-1]), target, {})


def text_outside(plot, slack=0.5):
    """The texts of a figure that reach over its edge by more than `slack` pixels, drawn at its own size."""
    fig = plot.fig
    renderer = FigureCanvasAgg(fig).get_renderer()
    fig.draw_without_rendering()
    wide, high = fig.bbox.width, fig.bbox.height
    outside = []
    hidden = hidden_labels(fig)
    for artist in fig.findobj(Text):
        if artist in hidden or not artist.get_visible() or not artist.get_text().strip():
            continue
        box = artist.get_window_extent(renderer)
        if box.x0 < -slack or box.y0 < -slack or box.x1 > wide + slack or box.y1 > high + slack:
            outside.append((artist.get_text(), box.extents.tolist(), (wide, high)))
    return outside


def hidden_labels(fig):
    """Labels of ticks outside of the range of their axis: they exist, but are not drawn."""
    hidden = set()
    for axes in fig.findobj(Axes):
        for axis in (axes.xaxis, axes.yaxis):
            drawn = set(axis._update_ticks())
            ticks = {*axis.get_major_ticks(), *axis.get_minor_ticks()} - drawn
            hidden |= {label for tick in ticks for label in (tick.label1, tick.label2)}
    return hidden


def overlapping(plot):
    """Pairs of a title or line of a figure and another, or a panel, that it lies over; after the figure was drawn."""
    titles = [axes.title for axes in plot.axes] + plot.fig.texts
    boxes = [(one.get_text(), one.get_window_extent()) for one in titles if one.get_text()]
    panels = [("a panel", axes.bbox) for axes in plot.axes]
    pairs = [*itertools.combinations(boxes, 2), *itertools.product(boxes, panels)]
    return [(first, second) for (first, a), (second, b) in pairs if not _apart(a, b)]


def _apart(a, b):
    return a.x1 <= b.x0 + 1 or b.x1 <= a.x0 + 1 or a.y1 <= b.y0 + 1 or b.y1 <= a.y0 + 1


def texts(plot):
    return [artist.get_text() for artist in plot.fig.findobj(Text) if artist.get_text()]


def sampled(channels=3, words=4, steps=5, cells=4):
    by_step = random(1, words, steps).double() - 0.5
    names, layers = tuple(f"word{k}" for k in range(words)), ("stem", "blocks.0", "head")
    return SamplingAttribution(
        names, tuple(f"t={900 - 100 * k}" for k in range(steps)), by_step, random(1, steps).double(),
        {"0": random(1, channels, 8, 8)}, layers, random(3, steps, 2).double(), random(3, steps).double(),
        torch.ones(1),
        "contrast of the picture", 2 * random(1, channels, 8, 8) - 1, ledger(3), "relevance through sampling", {},
        random(1, words, cells, cells).double() - 0.5, explanation=("What it means.", "What it does not."),
    )  # fmt: skip


def steering():
    """Two strengths next to three random directions."""
    per, others = random(2).double(), random(2, 3, seed=1).double()
    settings = {"absolute": False, "target": "joy", "draws": 3}
    ratio = torch.tensor([1.0, 1.2]).double()
    return Steering(
        "blocks.1", random(4).double(), 3.0, torch.tensor([0.5, 1.0]).double(), per, others, per.abs(), others.abs(),
        ratio, ("score", "nats"), "joy", "plain", ("glad", "happy"), "odd", torch.tensor([9.0, 9.5, 12.0]).double(),
        others.abs() + 9, "difference of means", settings, ("Effects.", "No proof."),
    )  # fmt: skip


def generation():
    """Three tokens after a prompt of two, with the relevance of each."""
    ids = torch.tensor([3, 1, 2])
    top = torch.tensor([[3, 0], [4, 1], [2, 4]])
    log_p = torch.tensor([[0.6, 0.2], [0.5, 0.3], [0.9, 0.05]]).double().log()
    names = {0: " the", 1: " b", 2: ".", 3: " a", 4: "$4"}
    prompt, tokens = ("What", " is"), (" a", " b", ".")
    rows = [dataclasses.replace(relevance(), values=random(1, 4), axes=None, inputs=None) for _ in tokens]
    shown = LogitLens(
        "probability", ("in", "0"), tuple("abc"), random(2, 3).abs().double(), ("layer", "step"), "1", False, "x", {},
        targets=(3, 1, 2), top=torch.stack([top.T, top.T]).transpose(1, 2), scores=torch.rand(2, 3, 2), names=names,
    )  # fmt: skip
    return Generation(
        " a b.", tokens, ids, prompt, torch.stack([log_p[0, 0], log_p[1, 1], log_p[2, 0]]), top, log_p, names,
        {"input_ids": torch.tensor([[5, 6, 3, 1, 2]])}, "input_ids", "greedy", {"seed": 0}, logit_lens=shown,
        relevance=tuple(rows), explanation=("Probabilities.", "No truth."),
    )  # fmt: skip


def contributions(layers=3, batch=1):
    book = ledger(2, batch)
    table = random(layers, batch).double()
    parts = [Entry("part", PATHS[index], PATHS[index], row) for index, row in enumerate(table)]
    whole = Ledger(book.score.double() + table.sum(dim=0), (*parts, *book.entries))
    names = tuple(PATHS[:layers])
    return Contributions(names, names, ((),) * layers, table, 2 * table, whole, "layer", "cat", None, "relevance", {})


def attribution_graph(layers=3, batch=1):
    names, book = ("input", *PATHS[:layers]), ledger(2, batch)
    receivers = ("score", *PATHS[:layers][::-1])
    sent = random(len(receivers), len(names), batch).double()
    for row, receiver in enumerate(receivers[1:], start=1):
        sent[row, names.index(receiver) :] = 0
    rest = torch.zeros(len(receivers), batch).double()
    return AttributionGraph(
        names,
        names,
        sent.sum(dim=0),
        receivers,
        sent,
        rest,
        rest,
        book,
        ("input",),
        "layer",
        "cat",
        None,
        "relevance",
        {},
    )
