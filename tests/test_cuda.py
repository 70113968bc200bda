"""On a GPU every analyzer gives what it gives on the processor; needs one, and says so where there is none."""

import pytest
import torch

import layerlens
from layerlens.demo.embedded import load_digit_net, sample_pictures

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU is at hand")

ANALYSES = {
    "capture": lambda net, x: layerlens.capture(net, x, "blocks.*")["blocks.1"],
    "gradient": lambda net, x: layerlens.saliency(net, x, target=7, method="gradient").tensor,
    "integrated_gradients": lambda net, x: layerlens.saliency(net, x, target=7, method="integrated_gradients").tensor,
    "grad_cam": lambda net, x: layerlens.grad_cam(net, x, target=7).tensor,
    "occlusion": lambda net, x: layerlens.saliency(net, x, target=7, method="occlusion", window=12).tensor,
    "relevance": lambda net, x: layerlens.relevance(net, x, target=7).tensor,
    "jacobian": lambda net, x: layerlens.jacobian(net, x).values,
    "over": lambda net, x: layerlens.over(net, x.cpu(), batch_size=4).relevance(target=7)["values"].tensor(),
}


@pytest.mark.parametrize("name", ANALYSES)
def test_a_gpu_gives_what_the_processor_gives(name):
    net, x = load_digit_net().double(), sample_pictures()[0][:4].double()
    wanted = ANALYSES[name](net, x)
    found = ANALYSES[name](net.cuda(), x.cuda())
    torch.testing.assert_close(found.cpu(), wanted, rtol=1e-6, atol=1e-8)
    assert all(parameter.is_cuda for parameter in net.parameters())
