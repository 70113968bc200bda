"""The tensor of an output that is scored, and where it is refused to choose one."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from layerlens import Lens
from layerlens.errors import TargetError
from layerlens.targets.outputs import main_output
from layerlens.targets.target import as_target

SCORES = torch.tensor([[1.0, 5.0, 3.0], [7.0, 2.0, 4.0]])
STATES = torch.ones(1, 2, 4)


class Detection(NamedTuple):
    boxes: torch.Tensor
    classes: torch.Tensor


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.boxes, self.classes = nn.Linear(5, 4), nn.Linear(5, 3)

    def forward(self, x):
        return {"boxes": self.boxes(x), "classes": self.classes(x)}


@pytest.mark.parametrize(
    "output",
    [
        [SCORES],
        {"loss": torch.tensor(0.1), "scores": SCORES},
        {"out": SCORES, "aux": SCORES * 0},
        (SCORES, (STATES, STATES)),
        (torch.ones(2, dtype=torch.long), SCORES),
        (None, {"logits": SCORES}, (SCORES * 0, SCORES * 0)),
    ],
    ids=["one", "a loss", "by name", "states", "ids", "by an inner name"],
)
def test_an_output_with_one_tensor_of_scores_needs_no_choice(output):
    assert main_output(output) is SCORES


@pytest.mark.parametrize(
    ("output", "example"),
    [
        ({"boxes": torch.ones(2, 4), "classes": SCORES}, "target=lambda output: output['boxes'][:, 0]"),
        ({"boxes": torch.ones(2, 9, 4), "classes": SCORES}, "output['classes'] (2, 3)"),
        (Detection(torch.ones(2, 4), SCORES), "target=lambda output: output.boxes[:, 0]"),
        ((SCORES, SCORES), "output[1] (2, 3)"),
        ((torch.ones(2, 1, 8, 8), SCORES, SCORES), "output[0].flatten(1).mean(dim=1)"),  # picture, mean, log variance
        ((torch.ones(2, 5, 4), (STATES, STATES)), "output[1][0] (1, 2, 4)"),
    ],
)
@pytest.mark.parametrize("spec", [None, 1, [0, 1]], ids=["none", "int", "list"])
def test_several_tensors_are_refused_with_the_choice(output, example, spec):
    with pytest.raises(TargetError, match="tensors that could be scored") as error:
        as_target(spec).resolve(output)(output)
    assert example in str(error.value)


@pytest.mark.parametrize("analyze", ["saliency", "relevance", "ablate", "noise_response", "attack_curve"])
def test_the_advice_works(analyze):
    torch.manual_seed(0)
    model, x = TwoHeads().eval(), torch.randn(2, 5)
    with pytest.raises(TargetError, match=r"Say which one: target=.*Lens\(model, forward="):
        getattr(Lens(model), analyze)(x)
    getattr(Lens(model), analyze)(x, target=lambda output: output["classes"][:, 1])
    getattr(Lens(model, forward=lambda model, *x, **more: model(*x, **more)["classes"]), analyze)(x)


@pytest.mark.parametrize("axes", [1, 2, 4])
def test_one_number_per_sample_needs_no_target_whatever_its_axes(axes):
    model, x = nn.Linear(3, 1), torch.ones(2, *[1] * (axes - 1), 3)
    found = Lens(model).saliency(x, method="input_x_gradient")
    assert torch.allclose(found.tensor, (x * model.weight).reshape(found.tensor.shape)) and found.target == "output"
