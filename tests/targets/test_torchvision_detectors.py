"""Torchvision's detectors as they are: random weights, pictures in a list."""

import pytest
import torch

from layerlens import Lens, box, instance

detection = pytest.importorskip("torchvision.models.detection", reason="no build of torchvision fits this torch")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:.*are zero everywhere")]

RANDOM = {"weights": None, "weights_backbone": None}
MAKE = {
    "faster": lambda: detection.fasterrcnn_mobilenet_v3_large_320_fpn(**RANDOM, box_score_thresh=0.0, num_classes=4),
    "mask": lambda: detection.maskrcnn_resnet50_fpn(**RANDOM, box_score_thresh=0.0, num_classes=4, min_size=96),
    "keypoint": lambda: detection.keypointrcnn_resnet50_fpn(**RANDOM, box_score_thresh=0.0, num_classes=2, min_size=96),
    "retina": lambda: detection.retinanet_resnet50_fpn(**RANDOM, score_thresh=0.0, num_classes=4, min_size=96),
    "fcos": lambda: detection.fcos_resnet50_fpn(**RANDOM, score_thresh=0.0, num_classes=4, min_size=96),
    "ssd": lambda: detection.ssdlite320_mobilenet_v3_large(**RANDOM, score_thresh=0.0, num_classes=4),
}


@pytest.mark.parametrize("name", MAKE)
def test_a_detection_of_each_picture(name):
    torch.manual_seed(0)
    model = MAKE[name]().eval()
    pictures = [torch.rand(3, 64, 96), torch.rand(3, 64, 96)]
    target = instance() if name == "mask" else box(1)
    found = Lens(model).saliency(pictures, target=[target, target], method="gradient")
    for row, picture in enumerate(pictures):
        x = picture.clone().requires_grad_()
        (one,) = model([x])
        score = one["scores"][1]
        if name == "mask":
            plane = one["masks"][0, 0]
            score = plane[plane > 0.5].mean()
        (slope,) = torch.autograd.grad(score, x)
        assert float(found.score[row]) == pytest.approx(float(score.detach()), rel=1e-4)
        size = slope.abs().max()
        assert torch.allclose(found.tensor[row], slope, atol=float(1e-3 * size + 1e-9))
