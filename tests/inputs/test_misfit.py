"""Wrong calls that beginners make: each is an error of layerlens that says what was given and what to type."""

import copy
import types

import numpy as np
import pandas
import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from torch.utils.data import DataLoader, TensorDataset

import layerlens
from layerlens import Lens, saliency
from layerlens.errors import InputError, LayerLensError, ResultFileError, TargetError
from layerlens.inputs.batches import Data
from layerlens.inputs.inputs import as_inputs


class Series(nn.Module):
    def __init__(self, rnn=nn.LSTM):
        super().__init__()
        self.rnn, self.head = rnn(2, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 3)

    def forward(self, input_ids, attention_mask=None):
        return self.head(self.embed(input_ids).mean(1))


class Colors(nn.Module):
    """As many channels as classes, and a mean over places that takes pictures without a batch."""

    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.conv(x).relu().mean(dim=(-2, -1)))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(2, 3)

    def forward(self, a, b):
        return self.first(a) + self.second(b)


def tokenizer(texts, **_):
    ids = {"one": 1, "two": 2, " two": 3}
    listed = [texts] if isinstance(texts, str) else texts
    rows = [[ids.get(text, 4)] for text in listed]
    return {"input_ids": rows[0] if isinstance(texts, str) else torch.tensor(rows)}


tokenizer.decode = lambda ids: {1: "one", 2: "two", 3: " two"}.get(ids[0], "?")  # type: ignore[attr-defined]


class Speaker(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 6), nn.Linear(6, 11)

    def forward(self, input_ids):
        return self.head(self.embed(input_ids))


def model_of(name):
    torch.manual_seed(0)
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(4, 5)]
    return {
        "vision": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), *head),
        "plain": lambda: nn.Sequential(nn.Conv2d(3, 4, 3), *head),
        "gray": lambda: nn.Sequential(nn.Conv2d(1, 4, 3), *head),
        "colors": Colors,
        "volume": lambda: nn.Sequential(nn.Conv3d(1, 2, 3), nn.AdaptiveAvgPool3d(1), nn.Flatten(1), nn.Linear(2, 3)),
        "pixels": lambda: nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)),
        "table": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)),
        "norm": lambda: nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3)),
        "square": lambda: nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 3)),
        "value": lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)),
        "double": lambda: nn.Sequential(nn.Linear(4, 3)).double(),
        "half": lambda: nn.Sequential(nn.Linear(4, 3)).bfloat16(),
        "series": Series,
        "gru": lambda: Series(nn.GRU),
        "steps": lambda: nn.Sequential(nn.Conv1d(2, 4, 3), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)),
        "words": Words,
        "two": Two,
    }[name]()


IMAGES = torch.rand(2, 3, 12, 12, generator=torch.Generator().manual_seed(0))
BYTES = (IMAGES * 255).byte()
TABLE = torch.rand(6, 4, generator=torch.Generator().manual_seed(1))
NAMES = ("a", "b", "c", "d", "e")

WRONG = [  # model, input, what the message says: what was given, and what to type
    ("vision", IMAGES[0], "float32 (3, 12, 12)", "x.unsqueeze(0), float32 (1, 3, 12, 12)"),
    ("plain", IMAGES[0], "float32 (3, 12, 12)", "x.unsqueeze(0), float32 (1, 3, 12, 12)"),
    ("colors", IMAGES[0], "float32 (3, 12, 12)", "x.unsqueeze(0), float32 (1, 3, 12, 12)"),
    ("volume", torch.rand(1, 6, 6, 6), "float32 (1, 6, 6, 6)", "x.unsqueeze(0), float32 (1, 1, 6, 6, 6)"),
    ("vision", IMAGES.permute(0, 2, 3, 1), "float32 (2, 12, 12, 3)", "x.permute(0, 3, 1, 2), float32 (2, 3, 12, 12)"),
    ("vision", IMAGES[0].permute(1, 2, 0), "float32 (12, 12, 3)", "x.permute(2, 0, 1).unsqueeze(0)"),
    ("vision", IMAGES[:, :1], "float32 (2, 1, 12, 12)", "x.expand(-1, 3, -1, -1)"),
    ("vision", IMAGES[0, 0], "float32 (12, 12)", "Give an input of shape (batch, 3, height, width)"),
    ("vision", torch.rand(2, 4, 12, 12), "float32 (2, 4, 12, 12)", "It takes 3 channels"),
    ("gray", IMAGES, "float32 (2, 3, 12, 12)", "x.mean(1, keepdim=True), float32 (2, 1, 12, 12)"),
    ("gray", IMAGES[0], "float32 (3, 12, 12)", "x.mean(0)[None, None], float32 (1, 1, 12, 12)"),
    ("gray", IMAGES[0].permute(1, 2, 0), "float32 (12, 12, 3)", "x[..., :3].mean(-1)[None, None]"),
    ("gray", IMAGES[:, 0].flatten(1), "float32 (2, 144)", "x.unflatten(1, (1, 12, 12)), float32 (2, 1, 12, 12)"),
    ("vision", IMAGES.flatten(1), "float32 (2, 432)", "x.unflatten(1, (3, 12, 12)), float32 (2, 3, 12, 12)"),
    ("gray", IMAGES[:, :2], "float32 (2, 2, 12, 12)", "It takes 1 channel, shape"),
    ("gray", IMAGES[:, 0], "float32 (2, 12, 12)", "x.unsqueeze(1), float32 (2, 1, 12, 12)"),
    ("gray", IMAGES[0, 0], "float32 (12, 12)", "x[None, None], float32 (1, 1, 12, 12)"),
    ("pixels", torch.rand(2, 1, 4, 4), "float32 (2, 1, 4, 4)", "x.flatten(1), float32 (2, 16)"),
    ("vision", BYTES, "uint8 (2, 3, 12, 12)", "x.float() / 255"),
    ("vision", BYTES[0].permute(1, 2, 0).numpy(), "uint8 (12, 12, 3)", "x.permute(2, 0, 1).unsqueeze(0).float() / 255"),
    ("vision", IMAGES.double(), "float64 (2, 3, 12, 12)", "x.float()"),
    ("vision", IMAGES.half(), "float16 (2, 3, 12, 12)", "x.float()"),
    ("vision", IMAGES[0].double(), "float64 (3, 12, 12)", "x.unsqueeze(0).float()"),
    ("vision", BYTES.long(), "int64 (2, 3, 12, 12)", "x.float()"),
    ("vision", (IMAGES, torch.tensor([1, 2])), "1 int64 (2,)", "give x[0], with target=x[1]"),
    ("vision", (IMAGES, IMAGES), "1 float32 (2, 3, 12, 12)", "torch.stack(x)"),
    ("vision", {"image": IMAGES}, "image float32 (2, 3, 12, 12)", "Give {'input': ...}"),
    ("vision", IMAGES * float("nan"), "float32 (2, 3, 12, 12)", "x.nan_to_num()"),
    ("vision", IMAGES[:0], "float32 (0, 3, 12, 12)", "such as x[:1]"),
    ("vision", IMAGES.to("meta"), "float32 (2, 3, 12, 12)", "torch.rand((2, 3, 12, 12))"),
    ("vision", "cat.png", "'cat.png'", "Path(name), with Lens(model, transform=...)"),
    ("vision", None, "NoneType", "Give a tensor"),
    ("table", TABLE[0], "float32 (4,)", "x.unsqueeze(0), float32 (1, 4)"),
    ("square", TABLE[0, :3], "float32 (3,)", "x.unsqueeze(0), float32 (1, 3)"),
    ("value", TABLE[0], "float32 (4,)", "x.unsqueeze(0), float32 (1, 4)"),
    ("norm", TABLE[0], "float32 (4,)", "x.unsqueeze(0), float32 (1, 4)"),
    ("table", TABLE[0].numpy(), "float32 (4,)", "x.unsqueeze(0), float32 (1, 4)"),
    ("table", TABLE[:, :3], "float32 (6, 3)", "Give an input of shape (..., 4)"),
    ("table", TABLE.T, "float32 (4, 6)", "x.T, float32 (6, 4)"),
    ("table", TABLE.double(), "float64 (6, 4)", "x.float()"),
    ("double", TABLE, "float32 (6, 4)", "x.to(torch.float64)"),
    ("half", TABLE, "float32 (6, 4)", "x.to(torch.bfloat16)"),
    ("table", TABLE.long(), "int64 (6, 4)", "x.float()"),
    ("table", np.ones((2, 4), dtype=int), "int64 (2, 4)", "x.float()"),
    ("table", TABLE > 0, "bool (6, 4)", "x.float()"),
    ("table", np.array([["a", 1, 2, 3]], dtype=object), "(1, 4)", "x.astype('float32')"),
    ("two", TABLE, "float32 (6, 4)", "a dict by name, such as {'a': x}"),
    ("two", {"a": TABLE, "c": TABLE[:, :2]}, "c float32 (6, 2)", "Give {'b': ...} instead of {'c': ...}"),
    ("two", {"a": TABLE[0], "b": TABLE[0, :2]}, "a float32 (4,), b float32 (2,)", "a.unsqueeze(0), b.unsqueeze(0)"),
    ("series", torch.rand(9, 2), "float32 (9, 2)", "x.unsqueeze(0), float32 (1, 9, 2)"),
    ("gru", torch.rand(9, 2), "float32 (9, 2)", "x.unsqueeze(0), float32 (1, 9, 2)"),
    ("series", torch.rand(9), "float32 (9,)", "Give an input of shape (..., 2)"),
    ("series", torch.rand(3, 2, 9), "float32 (3, 2, 9)", "x.transpose(1, 2), float32 (3, 9, 2)"),
    ("series", torch.rand(1, 9, 2).double(), "float64 (1, 9, 2)", "x.float()"),
    ("series", torch.ones(1, 9, 2).long(), "int64 (1, 9, 2)", "x.float()"),
    ("steps", torch.rand(2, 9), "float32 (2, 9)", "x.unsqueeze(0), float32 (1, 2, 9)"),
    ("steps", torch.rand(3, 9, 2), "float32 (3, 9, 2)", "x.transpose(1, 2)"),
    ("words", torch.tensor([1, 2, 3]), "int64 (3,)", "x.unsqueeze(0), int64 (1, 3)"),
    ("words", torch.ones(1, 3), "float32 (1, 3)", "x.long()"),
    ("words", np.ones((1, 3)), "float32 (1, 3)", "x.long()"),
    ("words", torch.ones(1, 3).short(), "int16 (1, 3)", "x.long()"),
    ("words", torch.tensor([[1, 20]]), "ids from 1 to 20", "ids from 0 to 10"),
    ("words", {"ids": torch.tensor([[1, 2]])}, "ids int64 (1, 2)", "Give {'input_ids': ...} instead of {'ids': ...}"),
    ("words", "hello", "'hello'", "Lens(model, tokenizer=...)"),
]


@pytest.mark.parametrize(("name", "x", "given", "typed"), WRONG, ids=[f"{k} {row[0]}" for k, row in enumerate(WRONG)])
def test_an_input_that_does_not_fit_says_what_does(name, x, given, typed):
    model = model_of(name).train()
    before, state = {key: one.clone() for key, one in model.state_dict().items()}, torch.get_rng_state()
    for analyze in (Lens(model).saliency.gradient, Lens(model).saliency.feature_ablation, Lens(model).capture):
        if name == "colors" and analyze.__name__ == "capture":
            continue  # what its layers hold is well defined without a batch
        with pytest.raises(LayerLensError) as error:
            analyze(x)
        assert given in str(error.value) and typed in str(error.value)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[key], one) for key, one in model.state_dict().items())


def one_hot(labels):
    return torch.eye(5)[labels]


TARGETS = [
    (one_hot([0, 2]), "float32 (2, 5)", "target=y.argmax(1)"),
    (one_hot([0, 2]).long(), "int64 (2, 5)", "target=y.argmax(1)"),
    (one_hot([0, 2]).numpy(), "float32 (2, 5)", "target=y.argmax(1)"),
    (one_hot([0, 2]).tolist(), "[[1.0, 0.0", "np.argmax(y, axis=1)"),
    (np.array([[1], [2]]), "int64 (2, 1)", "target=y.ravel()"),
    (np.array([1.0, 2.0]), "float64 (2,)", "target=[int(label) for label in y]"),
    (torch.rand(2, 5), "float32 (2, 5)", "target=y.argmax(1)"),
    (["seven", "one"], "'seven'", "Known: a, b, c, d, e"),
    ("aa", "'aa'", "Closest: a"),
    ([0, 1, 2], "a list of 3 for a batch of 2", "Give one target"),
    (9, "class 9", "0 to 4"),
]


@pytest.mark.parametrize(("target", "given", "typed"), TARGETS)
def test_a_target_that_does_not_fit_says_what_does(target, given, typed):
    with pytest.raises(TargetError) as error:
        Lens(model_of("vision"), class_names=NAMES).saliency.gradient(IMAGES, target=target)
    assert given in str(error.value) and typed in str(error.value)


@pytest.mark.parametrize("target", [["b", "c"], np.array(["b", "c"]), np.array([1, 2]), [1, 2], torch.tensor([1, 2])])
def test_labels_in_any_form_are_targets(target):
    found = Lens(model_of("vision"), class_names=NAMES).saliency.gradient(IMAGES, target=target)
    assert found.targets == ("b", "c")


def test_labels_of_a_table_and_texts_of_a_column_are_read():
    lens = Lens(model_of("table"), class_names=["a", "b", "c"])
    for labels in (pandas.Series([2, 0, 1, 1, 0, 2]), pandas.Series(list("cabbac"))):
        assert lens.saliency.gradient(TABLE, target=labels).targets == ("c", "a", "b", "b", "a", "c")
    texts = Lens(Speaker(), tokenizer=tokenizer)
    expected = texts.saliency.gradient(["one"], target=1).values
    for column in (pandas.Series(["one"]), np.array(["one"]), np.array(["one"], dtype=object)):
        assert torch.equal(texts.saliency.gradient(column, target=1).values, expected)


def test_names_need_class_names():
    with pytest.raises(TargetError, match=r"'seven' is a name, .* Lens\(model, class_names=\.\.\.\)"):
        Lens(model_of("vision")).saliency.gradient(IMAGES, target=["seven", "one"])


def test_a_word_without_its_space_says_which_token_it_took():
    lens = Lens(Speaker(), tokenizer=tokenizer)
    with pytest.warns(UserWarning, match=r"target 'two' is token 2, .* is token 3: target=' two'\."):
        found = lens.saliency.gradient("one", target="two")
    assert found.target == "log p of 'two' next"
    for target in (" two", 2):
        lens.saliency.gradient("one", target=target)


# -- what is not an error ----------------------------------------------------------------------------------------------


class Times(nn.Module):
    """A physics net: one number for each sample."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, t):
        return self.net(t.unsqueeze(-1))


class Nodes(nn.Module):
    """A graph net: the first axis is the nodes, and the adjacency has their number."""

    def __init__(self):
        super().__init__()
        self.net, self.adjacency = nn.Linear(4, 2), torch.ones(6, 6)

    def forward(self, x):
        return self.adjacency @ self.net(x)


def test_inputs_of_one_axis_and_fixed_batches_are_kept():
    assert Lens(Times()).saliency.gradient(torch.rand(5), target=1).values.shape == (5,)
    with pytest.warns(UserWarning, match="samples influence each other"):
        assert Lens(Nodes()).saliency.gradient(TABLE, target=1).values.shape == (6, 4)


def test_an_error_of_the_model_itself_stays():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese") as error:
        Lens(Broken()).saliency.gradient(TABLE)
    assert not isinstance(error.value, LayerLensError)

    class Odd(nn.Module):
        def forward(self, x):
            if x.requires_grad:
                raise RuntimeError("no gradients here")
            return x

    with pytest.raises(RuntimeError, match="no gradients here"):  # it runs on the input, so the input is not at fault
        Lens(Odd()).saliency.gradient(TABLE)


def test_a_kernel_without_dual_numbers_is_not_the_fault_of_the_input():
    class Flash(nn.Module):
        def forward(self, x):
            if forward_ad.unpack_dual(x).tangent is not None:
                raise NotImplementedError("forward AD is not implemented")
            return x

    with forward_ad.dual_level(), torch.no_grad(), pytest.raises(NotImplementedError):
        as_inputs(forward_ad.make_dual(TABLE, TABLE)).run(Flash())


def test_functions_and_forward_say_the_same():
    model = model_of("table")
    with pytest.raises(InputError, match=r"x\.unsqueeze\(0\), float32 \(1, 4\)"):
        layerlens.saliency(model, TABLE[0], method="gradient")
    with pytest.raises(InputError, match=r"x\.unsqueeze\(0\)"):
        as_inputs(IMAGES[0]).run(model_of("vision"), lambda net, x: net(x))
    with pytest.raises(InputError, match=r"Sequential takes \(x\), and was given float32 \(6, 4\), 1 int64 \(6,\)"):
        as_inputs((TABLE, torch.ones(6).long())).run(model, lambda net, x: net(x))


def test_samples_with_their_labels_are_not_two_samples():
    lens, labels = Lens(model_of("table")), torch.randint(3, (6,))
    for pair in ((TABLE, labels), [TABLE.numpy(), labels.numpy()], (TABLE, labels[:, None])):
        with pytest.raises(InputError, match=r"\(6, 4\) and .* \(6,.*: samples and their labels.*labels=y"):
            lens.geometry(pair)
        with pytest.raises(InputError, match="samples and their labels"):
            lens.over(pair)
    listed = [one.inputs.batch for one in Data([TABLE[0], TABLE[1]]).batches()]  # two samples
    assert listed == [2]


def test_a_file_is_written_in_the_format_of_its_name(tmp_path):
    lens = Lens(model_of("table"))
    found = lens.saliency.gradient(TABLE)
    with pytest.raises(
        ResultFileError, match=r"\.npz, not as \.csv\. Give 'm\.npz'\. A table is .*\.to_csv\('m\.csv'\)"
    ):
        found.save(tmp_path / "m.csv")
    with pytest.raises(ResultFileError, match=r"Give 'm\.npz'\. A figure is result\.plot\(\)\.save\('m\.PNG'\)"):
        found.save(tmp_path / "m.PNG")
    with pytest.raises(
        ResultFileError, match=r"a record is written as \.safetensors, not as \.pt\. Give 'm\.safetensors'"
    ):
        lens.capture(TABLE).save(tmp_path / "m.pt")
    with pytest.raises(ResultFileError, match=r"a page is written as \.html, not as \.pdf\. Give 'r\.html'"):
        lens.report(TABLE, path=tmp_path / "r.pdf")
    assert not list(tmp_path.iterdir())
    assert found.save(tmp_path / "layer.3").name == "layer.3.npz"


def test_a_model_is_asked_in_peace():
    """Hooks, modes and buffers of the model are the same after a call that was explained."""
    model = model_of("vision").train()
    twin = copy.deepcopy(model)
    with pytest.raises(InputError):
        Lens(model).saliency.gradient(IMAGES[0])
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), twin.buffers(), strict=True))
    assert all(one.grad is None and one.requires_grad for one in model.parameters())


def test_an_input_on_another_device_is_moved():
    """A device without an accelerator: meta, where this model computes with no numbers."""

    class Elsewhere(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(1, device="meta"))

        def forward(self, x):
            if not x.is_meta:
                raise RuntimeError("Expected all tensors to be on the same device")
            return x * self.weight

    with pytest.raises(InputError, match=r"The input is on cpu and the model on meta: .* x\.to\('meta'\)"):
        as_inputs(TABLE).run(Elsewhere())


@pytest.mark.parametrize(
    "call, expected",
    [
        (lambda lens: Lens(nn.Linear), r"got the class Linear\. Make one first: Linear\(\.\.\.\)"),  # type: ignore[arg-type]
        (lambda lens: Lens(lens.model.state_dict()), r"got OrderedDict\. Weights go into a model"),
        (lambda lens: Lens("net.pt"), r"got str\. Load the file first"),  # type: ignore[arg-type]
        (lambda lens: Lens([lens.model]), r"got list\. Give one of them at a time"),  # type: ignore[arg-type]
        (lambda lens: Lens(abs), "Wrap a function in a module"),  # type: ignore[arg-type]
        (lambda lens: saliency(IMAGES, lens.model), r"cannot pass Sequential .* The model comes first, saliency"),  # type: ignore[arg-type]
        (lambda lens: lens.saliency(TensorDataset(IMAGES)), r"Of a data set: lens\.over\(data\)"),
        (lambda lens: lens.saliency(DataLoader(TensorDataset(IMAGES))), r"x, y = next\(iter\(loader\)\)"),
        (lambda lens: lens.saliency((IMAGES, torch.tensor([1, 2]))), r"Labels are a target, not an input: give x\[0\]"),
        (lambda lens: lens.saliency(IMAGES, method=["gradient", "rise"]), "one saliency method at a time"),
        (lambda lens: lens.saliency(IMAGES, target=nn.CrossEntropyLoss()), r"takes \(input, target\), and a target"),
        (lambda lens: lens.run(IMAGES, edits={"0": 0}), r"the edit of '0' is int\. Give one of layerlens\.edits"),
        (lambda lens: Lens(lens.model, tokenizer="gpt2"), r"this is 'gpt2': load one, .*from_pretrained"),  # type: ignore[arg-type]
        (lambda lens: Lens(lens.model, tokenizer=dict), "this is the class dict: load one"),
        (lambda lens: Lens(types.SimpleNamespace(model=lens.model)), r"Give the model that it holds, as its \.model"),  # type: ignore[arg-type]
        (lambda lens: lens.saliency([{"role": "user", "content": "hi"}] * 2), r"2 dicts with role, content\. A table"),
        (lambda lens: lens.saliency({"input_ids": [[1, 2]]}), r"tokenizer\(text, return_tensors='pt'\), or a table"),
        (lambda lens: lens.saliency([]), r"holds no tensor\. Give one sample or more"),
        (lambda lens: lens.over(IMAGES, store="run.csv").saliency(), r"a store is a folder, .* store='run'"),
    ],
)  # fmt: skip
def test_the_wrong_kind_of_argument_says_what_to_give(call, expected):
    with pytest.raises(LayerLensError, match=expected):
        call(Lens(model_of("vision")))


def test_a_result_is_the_array_of_its_values_for_numpy():
    found = Lens(model_of("table")).saliency.gradient(TABLE, target=0)
    assert np.asarray(found).dtype == np.float32 and np.array_equal(np.asarray(found), found.values.numpy())
    assert np.asarray(found, dtype="float64").dtype == np.float64
    both = Lens(model_of("two")).saliency.gradient({"a": TABLE, "b": TABLE[:, :2]}, target=0)
    with pytest.raises(TypeError, match="Attribution holds several arrays"):
        np.asarray(both)
