"""The status of every operation of `keras.ops` and every layer of `keras.layers`.

Each has a rule, is the identity, or is listed here as unknown with a reason. A test walks Keras's
modules and fails for classes that a later version of Keras adds.
"""

from typing import Literal

import keras

from keras_varinit.families.identity import IDENTITY_LAYERS, IDENTITY_OPERATIONS
from keras_varinit.signals.registry import registered

Status = Literal["identity", "rule", "unknown"]

# Operations whose output is a constant, which the engine evaluates itself.
FILLED = {"OnesLike": 1.0, "ZerosLike": 0.0}

# Names of operations by the reason why their moments are not known.
UNKNOWN_OPERATIONS: dict[str, tuple[str, ...]] = {
    "its output depends on the order or the ranks of entries": (
        *("Argmax", "Argmin", "Argpartition", "Argsort", "Median", "Nanargmax", "Nanargmin"),
        *("Nanmedian", "Nanpercentile", "Nanquantile", "Percentile", "Ptp", "Quantile"),
        *("SearchSorted", "Sort", "TopK", "Unique"),
    ),
    "it moves or picks entries by values that are data": (
        *("InTopK", "MultiHot", "Nonzero", "OneHot", "Scatter", "ScatterUpdate", "SegmentMax"),
        *("SegmentMin", "SegmentProd", "SegmentReduction", "SegmentSum", "Select", "SliceUpdate"),
        *("TakeAlongAxis", "Digitize", "Bincount", "Histogram", "IsIn"),
    ),
    "it accumulates along a dimension": (
        *("AssociativeScan", "Cumprod", "Cumsum", "Diff", "Nancumprod", "Nancumsum", "Trapezoid"),
    ),
    "it reduces entries in a way that is not modelled": (
        *("All", "AllClose", "Any", "Average", "CountNonzero", "Logsumexp", "Moments", "Nanmax"),
        *("Nanmean", "Nanmin", "Nanprod", "Nanstd", "Nansum", "Nanvar", "Prod"),
    ),
    "it is linear algebra on matrices of signals": (
        *("CDist", "Cholesky", "CholeskyInverse", "Corrcoef", "Correlate", "Cross", "Det", "Diag"),
        *("Diagflat", "Diagonal", "Eig", "Eigh", "Inner", "Inv", "JVP", "Kron", "Logdet"),
        *("Lstsq", "LuFactor", "MatrixRank", "Outer", "Pinv", "Qr", "SVD", "Slogdet", "Solve"),
        *("SolveTriangular", "Trace", "Vander", "Vdot"),
    ),
    "it works on complex numbers or frequencies": (
        *("Angle", "Conj", "Conjugate", "ExtractSequences", "FFT", "FFT2", "IFFT2", "IRFFT"),
        *("ISTFT", "Imag", "Polar", "RFFT", "Real", "STFT", "ViewAsComplex", "ViewAsReal"),
    ),
    "it joins masks": ("LogicalAnd", "LogicalOr", "LogicalXor"),
    "it works on integers or bits": (
        *("BitwiseAnd", "BitwiseInvert", "BitwiseLeftShift", "BitwiseNot", "BitwiseOr"),
        *("BitwiseRightShift", "BitwiseXor", "Gcd", "Lcm", "LeftShift", "RightShift"),
        *("Ldexp", "Nextafter", "UnravelIndex", "View"),
    ),
    "it runs a function that the graph does not show": (
        *("Cond", "ForiLoop", "Function", "Map", "Scan", "Switch", "VectorizedMap", "WhileLoop"),
    ),
    "it is an augmentation or a filter of images": (
        *("AffineTransform", "ElasticTransform", "GaussianBlur", "HSVToRGB", "MapCoordinates"),
        *("PSNR", "PerspectiveTransform", "RGBToGrayscale", "RGBToHSV", "Rot90", "SSIM"),
        *("ScaleAndTranslate", "SobelEdges"),
    ),
    "no public function makes it": ("Abs", "Mish"),
    "it is a loss": (
        *("BinaryCrossentropy", "CTCDecode", "CTCLoss", "CategoricalCrossentropy"),
        *("SparseCategoricalCrossentropy",),
    ),
    "it makes numbers of a shape or of nothing": (
        *("Arange", "Array", "EmptyLike", "Full", "FullLike", "Geomspace", "Linspace"),
        *("Logspace", "Meshgrid", "Ndim", "Size"),
    ),
    "it is not modelled": (
        *("BatchNorm", "ConvTranspose", "DepthwiseConv", "Dsplit"),
        *("Dstack", "Fold", "Glu", "Hsplit", "Isclose", "Isreal", "Rearrange"),
        *("SeparableConv", "Sparsemax", "Tile", "Tril", "Triu", "Unfold", "Vsplit"),
    ),
}

UNKNOWN_LAYERS: dict[str, tuple[str, ...]] = {
    "it turns data that are no signal into numbers": (
        *("CategoryEncoding", "Discretization", "HashedCrossing", "Hashing", "IntegerLookup"),
        *("MaxNumBoundingBoxes", "MelSpectrogram", "STFTSpectrogram", "StringLookup"),
        *("TextVectorization",),
    ),
    "it augments images at random": (
        *("AugMix", "AutoContrast", "ContrastLimitedAdaptiveHistogramEqualization"),
        *("CutMix", "Equalization", "MixUp", "RandAugment", "RandomBrightness"),
        *("RandomColorDegeneration", "RandomColorJitter", "RandomContrast", "RandomCrop"),
        *("RandomElasticTransform", "RandomErasing", "RandomFlip", "RandomGaussianBlur"),
        *("RandomGrayscale", "RandomHue", "RandomInvert", "RandomPerspective"),
        *("RandomPosterization", "RandomRotation", "RandomSaturation", "RandomSharpness"),
        *("RandomShear", "RandomTranslation", "RandomZoom", "Solarization"),
    ),
    "it runs code that Keras does not record": (
        *("FlaxLayer", "JaxLayer", "TFSMLayer", "TorchModuleWrapper"),
    ),
    "it is opened, and what is inside decides": (
        *("GRUCell", "LSTMCell", "Lambda", "Layer", "Pipeline", "SimpleRNNCell"),
        *("SpectralNormalization", "StackedRNNCells", "Wrapper"),
    ),
}


def status_of_operation(name: str) -> Status | None:
    """The status of an operation of `keras.ops` by its class name; None if it is not listed."""
    if name in IDENTITY_OPERATIONS:
        return "identity"
    if name in FILLED or name in registered("signal"):
        return "rule"
    return "unknown" if any(name in names for names in UNKNOWN_OPERATIONS.values()) else None


def status_of_layer(cls: type[keras.Layer]) -> Status | None:
    """The status of a layer class; None if it is not listed."""
    if cls in IDENTITY_LAYERS:
        return "identity"
    if any(base in registered("signal") for base in cls.__mro__):
        return "rule"
    listed = any(cls.__name__ in names for names in UNKNOWN_LAYERS.values())
    return "unknown" if listed else None


def reason_of(name: str) -> str:
    """The reason why an operation is unknown."""
    return next((why for why, names in UNKNOWN_OPERATIONS.items() if name in names), "no rule")
