"""Operations whose rule is the gradient, and operations that stop relevance."""

from __future__ import annotations

from layerlens.analyzers.graph.operation import Kind, Role, Row

# Linear in all differentiable inputs together: moving, adding, averaging. Selection (max pooling, sorting) is linear
# for the elements that it selects; ReLU and its variants have the gradient y / x wherever x is not 0.
_SHAPE = """
Alias AliasBackward AsStrided Clone Contiguous Detach Diag DiagEmbed Diagonal Expand Flip Movedim Narrow Permute
Repeat Reshape ReshapeAlias Roll Rot90 Select Slice Split SplitWithSizes Squeeze Swapaxes T ToCopy Transpose Tril Triu
Unbind Unflatten Unfold UnsafeSplit UnsafeSplitWithSizes UnsafeView Unsqueeze View ViewAsReal Cat Stack Gather Index
IndexSelect Take TakeAlongDim Upsample PixelShuffle PixelUnshuffle ChannelShuffle Im2Col Col2Im
ReflectionPad1D ReflectionPad2D ReflectionPad3D ReplicationPad1D ReplicationPad2D ReplicationPad3D ConstantPadNd
UpsampleNearest1D UpsampleNearest2D UpsampleNearest3D UpsampleNearestExact1D UpsampleNearestExact2D
UpsampleNearestExact3D UpsampleLinear1D UpsampleBilinear2D UpsampleTrilinear3D UpsampleBicubic2D UpsampleBilinear2DAa
UpsampleBicubic2DAa MaskedFill Where NativeDropout Copy PermuteCopy NarrowCopy PackPaddedSequence Neg UnfoldBackward
RegisterPostBackwardFunction Conj ConjPhysical Complex Deg2Rad Rad2Deg
""".split()

_SUMS = """
Add Sub Rsub Sum Mean Nansum Nanmean Cumsum AvgPool1D AvgPool2D AvgPool3D AdaptiveAvgPool1D AdaptiveAvgPool2D
AdaptiveAvgPool3D MkldnnAdaptiveAvgPool2D CopySlices CopyBackwards IndexAdd IndexPut IndexPutImpl IndexCopy IndexFill
Scatter ScatterAdd ScatterReduce SelectScatter SliceScatter DiagonalScatter MaskedScatter MaskedSelect SegmentReduce
Trace Embedding EmbeddingBag FftR2C FftC2R FftC2C Real Imag ViewAsComplex Relu LeakyRelu RreluWithNoise Threshold Abs
Hardshrink NanToNum Lift Masked BackwardHookFunction BlockDiag Put Fill Zero UnsafeMaskedIndex
UnsafeMaskedIndexPutAccumulate AffineGridGenerator NllLoss NllLoss2D
""".split()

_CHOICES = """
MaxPool2DWithIndices MaxPool3DWithIndices AdaptiveMaxPool2D AdaptiveMaxPool3D FractionalMaxPool2D FractionalMaxPool3D
MaxUnpool2D MaxUnpool3D MkldnnMaxPool2D Max Min Amax Amin Aminmax Topk Sort Kthvalue Median Nanmedian Mode Maximum
Minimum Fmax Fmin Cummax Cummin
""".split()

# Linear in what they read, at places that another input chooses; those of torchvision by name, which needs no import.
_PLACED = """
GridSampler2D GridSampler3D CudnnGridSampler GridSampler2DCpuFallback torchvision_roi_align torchvision_roi_pool
torchvision_ps_roi_align torchvision_ps_roi_pool ROIAlignFunction ROIPoolFunction PSROIAlignFunction PSROIPoolFunction
""".split()

DIVIDES = "it divides by a signal, and a quotient is not proportional to its denominator"
STEP = "it is a step, or periodic, so the size of its input does not matter"
PLACES = "the input that says where to read has no share in what is read"

LINEAR: dict[str, Row] = {
    **{name: Row(Kind.LINEAR, role=Role.SAME) for name in _SHAPE},
    **{name: Row(Kind.LINEAR) for name in _SUMS + _CHOICES},
    "Add": Row(Kind.LINEAR, role=Role.SAME),
    "Sub": Row(Kind.LINEAR, role=Role.SAME),
    "Rsub": Row(Kind.LINEAR, role=Role.SAME),
    "Lerp": Row(Kind.LINEAR, slots=(0, 1)),
    "PreluKernel": Row(Kind.LINEAR, slots=(0,)),
    "Polar": Row(Kind.LINEAR, slots=(0,), why="the angle has no share in the size"),
    "Normal": Row(Kind.STOP, why="torch gives what it draws no gradient"),
    "Copysign": Row(Kind.LINEAR, slots=(0,), why="it takes only the sign of its second input"),
    **{name: Row(Kind.LINEAR, slots=(0,), why=PLACES) for name in _PLACED},
}

_SIZES = "WeightNormInterface VarMean StdMean SqrtBoundDerivative".split()
_QUOTIENTS = "Rsqrt Reciprocal LinalgInvEx LinalgPinv CholeskyInverse".split()
_STEPS = """
Sign Sgn Floor Ceil Round Trunc Heaviside FakeQuantizePerTensorAffineCachemask Argmax Angle Bernoulli Frac Fmod
Remainder Nextafter
""".split()

# Operations that measure the size of a signal in order to divide by it, that do so, and those without a useful slope.
STOPS: dict[str, Row] = {
    **{name: Row(Kind.STOP) for name in _SIZES},
    **{name: Row(Kind.STOP, why=DIVIDES) for name in _QUOTIENTS},
    **{name: Row(Kind.STOP, why=STEP) for name in _STEPS},
}
