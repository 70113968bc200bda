"""Targets of detection models, on a detector that is made of the digit network: every window of a large picture."""

import pytest
import torch
from torch import nn

from layerlens import Lens, box, instance
from layerlens.demo.embedded import CLASS_NAMES, load_digit_net, sample_pictures
from layerlens.errors import InputError, PlotError, TargetError

SIDE = 48


class Windows(nn.Module):
    """Reads a digit in every window, half a window apart, and returns those above a score, the surest first."""

    def __init__(self, least=0.5):
        super().__init__()
        self.net, self.least = load_digit_net().eval(), least

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        return [self.one(image) for image in images]

    def one(self, image):
        step = SIDE // 2
        starts = [(y, x) for y in range(0, image.shape[1] - step, step) for x in range(0, image.shape[2] - step, step)]
        windows = torch.stack([image[:, y : y + SIDE, x : x + SIDE] for y, x in starts])
        scores, labels = self.net(windows).softmax(dim=1).max(dim=1)
        boxes = torch.tensor([[x, y, x + SIDE, y + SIDE] for y, x in starts], dtype=image.dtype)
        kept = [k for k in scores.argsort(descending=True).tolist() if scores[k] > self.least]
        masks = (windows - 0.5).sigmoid()
        return {"boxes": boxes[kept], "labels": labels[kept], "scores": scores[kept], "masks": masks[kept]}


@pytest.fixture(scope="module")
def pictures():
    """Three, one and eight in the first; six in the second."""
    images, _, _ = sample_pictures()
    canvas = torch.zeros(2, 1, 2 * SIDE, 2 * SIDE)
    for row, top, left, digit in ((0, 0, 0, 3), (0, 0, 1, 1), (0, 1, 1, 8), (1, 1, 0, 6)):
        canvas[row, :, top * SIDE : (top + 1) * SIDE, left * SIDE : (left + 1) * SIDE] = images[digit]
    return canvas


@pytest.fixture(scope="module")
def lens():
    return Lens(Windows(), class_names=CLASS_NAMES)


def places(model, picture, label):
    """Which detection of a picture has a label first, and its box."""
    with torch.no_grad():
        found = model([picture])[0]
    index = found["labels"].tolist().index(label)
    return index, [int(number) for number in found["boxes"][index]]


@pytest.mark.parametrize("digit", [1, 3, 8])
def test_the_gradient_of_a_detection_is_that_of_its_window(lens, pictures, digit):
    index, (left, top, right, bottom) = places(lens.model, pictures[0], digit)
    found = lens.saliency(pictures[:1], target=box(index), method="gradient")
    window = pictures[:1, :, top:bottom, left:right].clone().requires_grad_()
    (by_hand,) = torch.autograd.grad(lens.model.net(window).softmax(dim=1)[0, digit], window)
    assert torch.allclose(found.tensor[:, :, top:bottom, left:right], by_hand, atol=1e-7)
    assert found.tensor.count_nonzero() == by_hand.count_nonzero() > 0
    assert found.target.startswith(f"box {index}: {CLASS_NAMES[digit]}, score ")


def test_a_list_of_pictures_is_their_batch_where_the_model_takes_a_list(lens, pictures):
    of_list = lens.saliency(list(pictures), target=[box(1), box(0)], method="gradient")
    batch = lens.saliency(pictures, target=[box(1), box(0)], method="gradient")
    assert torch.equal(of_list.tensor, batch.tensor)
    for row, index in enumerate((1, 0)):
        alone = lens.saliency([pictures[row]], target=box(index), method="gradient")
        assert torch.allclose(alone.tensor[0], batch.tensor[row], atol=1e-7)
    with pytest.raises(InputError, match="differ in shape"):
        lens.saliency([pictures[0], pictures[1, :, :48]], target=box(), method="gradient")


def similar(found, label, chosen):
    """D-RISE by loops: the largest overlap times score of a detection of the same class."""
    best = 0.0
    for other, kind, score in zip(
        found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True
    ):
        wide, high = (min(other[k + 2], chosen[k + 2]) - max(other[k], chosen[k]) for k in (0, 1))
        both = max(wide, 0) * max(high, 0)
        areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (other, chosen)]
        best = max(best, (kind == label) * score * both / (sum(areas) - both))
    return best


def test_changed_pictures_score_the_detection_that_is_most_like_the_chosen_one(lens, pictures):
    index, chosen = places(lens.model, pictures[0], 3)
    found = lens.saliency(pictures[:1], target=box(index), method="occlusion", window=20, stride=20, baseline=0.0)
    score, values = float(found.score), found.tensor[0, 0]
    seen = set()
    for top in range(0, 80, 20):
        for left in range(0, 80, 20):
            changed = pictures[0].clone()
            changed[:, top : top + 20, left : left + 20] = 0
            with torch.no_grad():
                now = similar(lens.model([changed])[0], 3, chosen)
            assert float(values[top, left]) == pytest.approx(score - now, abs=1e-5)
            seen.add(round(score - now, 3))
    assert len(seen) > 2


def test_an_instance_is_the_mean_of_its_mask_over_its_own_area(lens, pictures):
    with torch.no_grad():
        masks = [found["masks"][0, 0] for found in lens.model(list(pictures))]
    found = lens.saliency(list(pictures), target=instance(), method="gradient")
    assert found.score.tolist() == pytest.approx([float(mask[mask > 0.5].mean()) for mask in masks])
    _, (left, top, right, bottom) = places(lens.model, pictures[1], 6)
    inside = found.tensor[1, 0, top:bottom, left:right] != 0
    assert torch.equal(inside, masks[1] > 0.5)


def test_read_makes_detections_of_any_output(pictures):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.YolosConfig(**sizes, image_size=[32, 32], num_detection_tokens=5, num_labels=3)
    model = transformers.YolosForObjectDetection(config).eval()

    def read(output):
        best = output.logits.softmax(dim=-1)[..., :-1].max(dim=-1)
        center, half = output.pred_boxes[..., :2], output.pred_boxes[..., 2:] / 2
        corners = torch.cat([center - half, center + half], dim=-1)
        return [{"boxes": b, "scores": s, "labels": c} for b, s, c in zip(corners, *best, strict=True)]

    x = torch.randn(2, 3, 32, 32)
    found = Lens(model).saliency(x, target=box(2, read=read), method="gradient")
    inputs = x.clone().requires_grad_()
    scores = model(inputs).logits.softmax(dim=-1)[:, 2, :-1].max(dim=-1).values
    (by_hand,) = torch.autograd.grad(scores.sum(), inputs)
    assert torch.allclose(found.score, scores.detach()) and torch.allclose(found.tensor, by_hand, atol=1e-7)
    with pytest.raises(TargetError, match=r"list with a mapping of boxes, scores per picture.*Give read="):
        Lens(model).saliency(x, target=box(), method="gradient")


def test_what_is_not_there_is_said(lens, pictures):
    with pytest.raises(TargetError, match=r"picture 1 has 1 detection\(s\), so there is no number 3: give 0 to 0"):
        lens.saliency(pictures, target=box(3), method="gradient")
    with pytest.raises(TargetError, match=r"has no detection\. Lower the score"):
        Lens(Windows(least=2.0)).saliency(pictures, target=box(), method="gradient")
    with pytest.raises(TargetError, match=r"a list of targets, \[box\(0\), box\(2\)\]"):
        box([0, 2])
    found = lens.saliency(pictures[:1], target=box(), method="gradient")
    with pytest.raises(PlotError, match="is not on a picture of 96 x 96"):
        found.plot(boxes=[100, 0, 120, 10])
    with pytest.raises(PlotError, match="left, top, right, bottom; got shape"):
        found.plot(boxes=[1, 2, 3])


def test_boxes_are_outlined(lens, pictures):
    found = lens.saliency(pictures[:1], target=box(), method="gradient")
    boxes = lens.model([pictures[0]])[0]["boxes"][:2]
    plot = found.plot(boxes=boxes)
    assert plot.data["boxes"].tolist() == boxes.tolist()
    drawn = [patch.get_bbox().extents.tolist() for patch in plot.fig.axes[0].patches[::2]]
    assert drawn == [[left - 0.5, top - 0.5, right - 0.5, bottom - 0.5] for left, top, right, bottom in boxes.tolist()]


def test_a_function_of_the_detections_gets_those_of_the_rows(lens, pictures):
    def surest(output, samples):
        assert len(output) == len(samples)
        return torch.stack([found["scores"][0] for found in output])

    found = lens.saliency(pictures, target=surest, method="gradient")
    assert torch.allclose(found.tensor, lens.saliency(pictures, target=box(), method="gradient").tensor)


def test_a_model_of_detections_without_a_target_names_box():
    with pytest.raises(TargetError, match=r"the detections of each picture: say which one to score, target=layerlens"):
        Lens(Windows(0.0)).saliency(torch.rand(1, 1, 72, 72), method="gradient")


class Undeclared(Windows):
    """Does not say what it takes, as RetinaNet, and has a second argument."""

    def forward(self, images, targets=None):
        assert targets is None
        return [self.one(image) for image in images]


class Pair(nn.Module):
    """Takes two series."""

    def forward(self, a, b):
        return (a * b).sum(dim=2)


def test_a_list_is_tried_as_a_batch_only_where_it_is_no_list_of_arguments(pictures):
    found = Lens(Undeclared()).saliency(list(pictures), target=box(), method="gradient")
    assert torch.equal(found.tensor, Lens(Windows()).saliency(pictures, target=box(), method="gradient").tensor)
    a, b = torch.randn(2, 3, 4, 5)
    first, second = Lens(Pair()).saliency([a, b], target=0, method="gradient").values.values()
    assert torch.equal(first[:, 0], b[:, 0]) and torch.equal(second[:, 0], a[:, 0])


def test_a_list_of_heads_is_not_one_of_samples():
    class Heads(nn.Module):
        def forward(self, x):
            return [{"y": x.sum(dim=2)}, {"y": 10 * x.sum(dim=2)}]

    x = torch.rand(2, 3, 4)
    targets = [lambda output: output[1]["y"][:, 0], lambda output: output[0]["y"][:, 1]]
    found = Lens(Heads()).saliency(x, target=targets, method="gradient").tensor
    expected = torch.zeros(2, 3, 4)
    expected[0, 0], expected[1, 1] = 10, 1
    assert torch.equal(found, expected)


def test_as_many_detections_as_pictures_are_those_of_each_picture(pictures):
    class Two(nn.Module):
        def forward(self, images: list[torch.Tensor]):
            boxes = torch.tensor([[0.0, 0, 4, 4], [4, 4, 8, 8]])
            return [{"boxes": boxes, "scores": torch.stack([one[0, 0, 0], one[0, 5, 5]])} for one in images]

    found = Lens(Two()).saliency(pictures, target=[box(1), box(0)], method="gradient").tensor
    assert found.nonzero().tolist() == [[0, 0, 5, 5], [1, 0, 0, 0]]


def test_targets_made_of_detections_keep_their_entries(pictures):
    both = Lens(Windows()).saliency(pictures[:1], target=box(0) - box(1), method="gradient").tensor
    first, second = (Lens(Windows()).saliency(pictures[:1], target=box(k), method="gradient").tensor for k in (0, 1))
    assert torch.allclose(both, first - second, atol=1e-7)
