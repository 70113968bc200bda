"""Which multiplier each operation of autograd's graph gets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..rules.elementwise import ELEMENTWISE
from ..rules.structure import LINEAR
from .multipliers import division, elementwise, gated, glu, maximum, midpoint, minimum, product, same_constants
from .normalizers import (
    batch_norm,
    deviation,
    group_norm,
    layer_norm,
    log_softmax,
    log_sum_exp,
    norm,
    order,
    rms_norm,
    softmax,
)
from .operation_calls import key
from .pairs import Pair, Rule
from .selections import chosen, indexed, ranked

_CURVES = """
Relu LeakyRelu RreluWithNoise Threshold Abs Hardshrink NanToNum PreluKernel Sqrt Rsqrt Reciprocal Log Log2 Log10 Acosh
Atanh Logit Exp2 Digamma Lgamma Polygamma Erfinv Ndtri Sign Sgn Floor Ceil Round Trunc Heaviside Fmod Remainder Frac
FakeQuantizePerTensorAffineCachemask Square SpecialEntr SpecialLogNdtr SpecialErfcx SpecialI0E SpecialI1 Xlogy
""".split()
_PRODUCTS = """
Mm Bmm Dot Vdot Mv Linear GroupedMm Addmm Addmv Baddbmm Addbmm Addcmul Convolution ConvolutionOverrideable LinalgCross
Lerp
""".split()
_UNSURE = {"ScatterReduce", "SegmentReduce", "Masked", "Aminmax", "Mode", "GridSampler2D", "GridSampler3D"}
_WEIGHTED = {"NativeLayerNorm", "NativeGroupNorm", "NativeBatchNorm", "FusedRmsNorm", "PreluKernel", "Trilinear"}
"""Operations whose rule is for a weight that does not depend on the input."""

RULES: dict[str, Rule] = {
    **dict.fromkeys([*ELEMENTWISE, *_CURVES], elementwise),
    **dict.fromkeys(_PRODUCTS, midpoint),
    "Trilinear": midpoint,
    "Mul": product,
    "Div": division,
    "Glu": glu,
    **dict.fromkeys(["Var", "VarMean"], midpoint),
    **dict.fromkeys(["Std", "StdMean"], deviation),
    **dict.fromkeys(["LinalgVectorNorm", "Norm"], norm),
    **dict.fromkeys(["Softmax", "SafeSoftmax"], softmax),
    "LogSoftmax": log_softmax,
    "Logsumexp": log_sum_exp,
    "NativeLayerNorm": layer_norm,
    "NativeGroupNorm": group_norm,
    **dict.fromkeys(["NativeBatchNorm", "CudnnBatchNorm"], batch_norm),
    "FusedRmsNorm": rms_norm,
    **dict.fromkeys(
        """
        MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D FractionalMaxPool2D
        FractionalMaxPool3D Max Amax Maximum Fmax Cummax
        """.split(),
        maximum,
    ),
    **dict.fromkeys(["Min", "Amin", "Minimum", "Fmin", "Cummin"], minimum),
    **dict.fromkeys(["Where", "MaskedFill"], chosen),
    **dict.fromkeys(["Gather", "Index", "IndexSelect", "Take"], indexed),
    **dict.fromkeys(["Topk", "Sort", "Kthvalue", "Median", "Nanmedian"], ranked),
}
"""Operation -> its rule. Operations of `LINEAR` that are not listed keep their gradient."""

MOVES = frozenset(
    """
    IndexPut IndexPutImpl IndexAdd IndexCopy IndexFill Scatter ScatterAdd MaskedScatter MaskedSelect GroupedMm Mul Div
    Where MaskedFill
    """.split()
)
"""Operations that are linear in signals, with a constant that says what is done with them, such as an index."""

WANTED = frozenset(map(key, MOVES | {op for op, rule in RULES.items() if rule is not midpoint}))
"""Keys of the operations whose values are read."""


def changed_choices(pairs: Sequence[Pair]) -> list[str]:
    """Return the operations of `MOVES` whose constants differ for the baseline, which their gradient misses."""
    chosen_by = (pair for pair in pairs if pair.info.op in MOVES)
    return sorted({pair.info.op for pair in chosen_by if pair.calls is not None and not same_constants(*pair.calls)})


def rule_of(pair: Pair) -> Rule | None:
    """Return the rule of an operation; None when its gradient is right.

    Raises:
        KeyError: when none is known.
    """
    info = pair.info
    slots = pair.slots
    if (info.op in _WEIGHTED and slots != (0,)) and not (info.op == "Trilinear" and 1 not in slots):
        raise KeyError(info.op)
    rule = RULES.get(info.op)
    if rule is midpoint and len(slots) < 2 and info.op not in ("Var", "VarMean"):
        return None
    if rule is None and (info.op not in LINEAR or info.op in _UNSURE):
        raise KeyError(info.op)
    if rule is elementwise and len(slots) != 1:
        raise KeyError(info.op)
    if rule is norm and pair.call is not None:
        p = order(pair.call)
        if not 0 < p < math.inf:
            raise KeyError(info.op)
        rule = deviation if p == 2 else norm
    if rule is batch_norm and not info.node._saved_training:  # linear, with running statistics
        return None
    if rule is division and getattr(info.node, "_saved_rounding_mode", None):
        rule = gated if slots == (0,) else None
        if rule is None:
            raise KeyError(info.op)
    return rule
