"""Models of timm and torchvision, small pictures and random weights, on which claims about axes are checked."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import nn

from tests.cases import normal, perturb

TIMM = """convnext_atto resnet18 vit_tiny_patch16_224 swin_tiny_patch4_window7_224 mobilenetv3_small_050
    efficientnet_lite0 regnetx_002 densenet121 mixer_s16_224 deit_tiny_patch16_224 pvt_v2_b0 maxvit_pico_rw_256
    coat_tiny cait_xxs24_224 convit_tiny convmixer_768_32 convnextv2_atto cpubone_nano crossvit_tiny_240 csatv2
    cs3darknet_s cspnext_s davit_tiny dla34 dpn48b edgenext_xx_small efficientformerv2_s0 mixnet_s
    efficientvim_m1 efficientvit_b0 efficientvit_m0 eva02_tiny_patch14_224 fasternet_t0 fastvit_t8 focalnet_tiny_lrf
    gcvit_xxtiny gernet_s ghostnet_050 halonet26t lambda_resnet26t botnet26t_256 hardcorenas_a hgnetv2_b0 hiera_tiny_224
    hieradet_small hrnet_w18_small iformer_s inception_next_atto lcnetv2_small levit_128s lowformer_b0
    mambaout_femto coatnet_nano_rw_224 maxxvit_rmlp_nano_rw_256 caformer_s18 poolformer_s12 poolformerv2_s12
    gmlp_ti16_224 resmlp_12_224 lcnet_035 mobilenetv4_conv_small mobilevit_xxs mobilevitv2_050 mvitv2_tiny
    nextvit_small nf_resnet26 pit_ti_224 rdnet_tiny repghostnet_050 repvit_m0_9
    res2net50_26w_4s resnest14d resnetv2_18 rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
    starnet_s1 swiftformer_xs swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_patch16_224 tresnet_m
    twins_svt_small twins_pcpvt_small visformer_tiny vit_tiny_r_s16_p8_224
    vit_relpos_small_patch16_224 vitamin_small_224 volo_d1_224 vovnet39a legacy_xception xception41 xcit_nano_12_p16_224
    tf_efficientnetv2_b0 resnet26t seresnet18 efficientformer_l1 inception_v3""".split()  # fmt: skip

TORCHVISION = {
    "alexnet": (3, 64, 96), "squeezenet1_1": (3, 64, 96), "shufflenet_v2_x0_5": (3, 64, 96), "mnasnet0_5": (3, 64, 96),
    "googlenet": (3, 64, 96), "vgg11": (3, 64, 96), "segmentation.lraspp_mobilenet_v3_large": (3, 64, 96),
    "segmentation.deeplabv3_mobilenet_v3_large": (3, 64, 96), "video.r3d_18": (3, 8, 32, 48),
    "video.mc3_18": (3, 8, 32, 48), "video.swin3d_t": (3, 8, 64, 96),
    "detection.ssdlite320_mobilenet_v3_large": (3, 96, 128), "detection.fcos_resnet50_fpn": (3, 96, 128),
    "detection.fasterrcnn_mobilenet_v3_large_320_fpn": (3, 96, 128), "detection.retinanet_resnet50_fpn": (3, 96, 128),
}  # fmt: skip
"""Name of the builder in `torchvision.models` -> size of one sample."""


def timm_model(name: str, size: tuple[int, int] | None = None) -> tuple[nn.Module, torch.Tensor]:
    """Return a model of timm and two pictures: of a size, or small ones that are not square, where it takes them."""
    timm = importlib.import_module("timm")

    tried: Any = ({}, (64, 96)), ({"img_size": (64, 96)}, (64, 96)), ({"img_size": (64, 128)}, (64, 128)), ({}, None)
    tried = tried if size is None else (({}, size),)
    for options, sides in tried:
        try:
            with torch.random.fork_rng(devices=[]), torch.no_grad():
                torch.manual_seed(0)
                model = timm.create_model(name, pretrained=False, **options).eval()
                x = normal(2, *(model.default_cfg["input_size"] if sides is None else (3, *sides)))
                model(x)
                return perturb(model), x
        except (TypeError, ValueError, RuntimeError, AssertionError):
            if sides is None:
                raise
    raise AssertionError(name)


def torchvision_model(name: str) -> tuple[nn.Module, torch.Tensor]:
    """Return a model of torchvision and two samples."""
    torchvision = importlib.import_module("torchvision")

    room, _, builder = name.rpartition(".")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        place = getattr(torchvision.models, room) if room else torchvision.models
        options: dict[str, Any] = {"weights_backbone": None} if room in ("segmentation", "detection") else {}
        options |= {"min_size": 96, "max_size": 128} if room == "detection" and "ssd" not in builder else {}
        options |= {"init_weights": True, "aux_logits": False} if builder == "googlenet" else {}
        return perturb(getattr(place, builder)(weights=None, **options)).eval(), normal(2, *TORCHVISION[name])
