"""The one table of supported layers: the importers consult it, the documentation is generated from it.

A layer outside the table, or an option outside its row, is refused by name with the text that
stands here; nothing is approximated and nothing dropped in silence.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from espalier.errors import UnsupportedError


@dataclass(frozen=True, slots=True)
class Span:
    """The whole numbers ``low..high``; ``high`` None means no upper bound."""

    low: int
    high: int | None = None

    def __contains__(self, value: int) -> bool:
        return self.low <= value and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.high is None:
            return f"{self.low} and up"
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"


class Option(Enum):
    """A whole-number option of a layer that has a range."""

    KERNEL = "kernel"
    STRIDE = "stride"
    PADDING = "padding"
    DILATION = "dilation"
    GROUPS = "groups"


@dataclass(frozen=True, slots=True)
class Limit:
    """Something a layer does not take: ``rule`` says what, ``remedy`` the nearest form that is taken."""

    rule: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Ranges:
    """What one executor of the network takes of a layer.

    Parameters
    ----------
    options : tuple of (Option, Span)
        In both directions of a window.
    notes : tuple of str
        Conditions that are not a range.
    """

    options: tuple[tuple[Option, Span], ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "; ".join([f"{option.value} {span}" for option, span in self.options] + list(self.notes)) or "any"


@dataclass(frozen=True, slots=True)
class Layer:
    """One row of the table.

    Parameters
    ----------
    name : str
    torch : tuple of str
        ``aten`` operators, with overload, as ``torch.export`` writes them.
    onnx : tuple of str
        ONNX operators, with their domain unless it is the default one.
    software : Ranges
        Taken by the importers, the training path and the interpreter.
    engine : Ranges or None
        Taken by the accelerator of this version; None where it does not take the layer.
    limits : tuple of Limit
        What the importers refuse.
    """

    name: str
    torch: tuple[str, ...]
    onnx: tuple[str, ...]
    software: Ranges
    engine: Ranges | None
    limits: tuple[Limit, ...] = ()

    def refuse(self, limit: Limit, where: str, found: str = "") -> UnsupportedError:
        """The error for meeting ``limit`` at ``where`` (``"Layer 'pool1' (aten.max_pool2d.default)"``).

        ``found`` says what was met, in brackets.
        """
        assert limit in self.limits, (self.name, limit)
        met = f" ({found})" if found else ""
        return UnsupportedError(f"{where}: {self.name} is not taken with {limit.rule}{met}; {limit.remedy}")

    def check(self, where: str, **options: int | tuple[int, ...]) -> None:
        """Raise UnsupportedError unless each named option is in its span."""
        for option, span in self.software.options:
            found = options[option.value]
            if any(value not in span for value in (found if isinstance(found, tuple) else (found,))):
                raise UnsupportedError(f"{where}: {self.name} takes {option.value} {span}, not {found}")


PLANE = Limit("other than two spatial axes",
              "use maps (batch, channels, height, width); a one-dimensional one is a map of height 1")
CEIL_MODE = Limit("a partial last window (ceil_mode)", "use ceil_mode=False and pad the input instead")
INDICES = Limit("the positions of the maxima as a result", "use only the pooled values")
STORAGE_ORDER = Limit("storage_order other than 0", "export row-major")
WIDE_POOL_PADDING = Limit("padding as large as the kernel or larger", "pad by less than the kernel")
COUNT_WITHOUT_PADDING = Limit("padding that the mean does not count", "use count_include_pad=True, or no padding")
DIVISOR = Limit("a divisor other than the size of the window", "leave divisor_override out")
UNEVEN_OUTPUT = Limit("an output size that does not divide the input size", "use an output of 1×1, or AvgPool2d")
OTHER_AXES = Limit("a mean over axes other than height and width", "use mean(dim=(2, 3))")
WEIGHT = Limit("a weight or bias that is not a parameter of its own", "give each layer a constant weight that no other "
               "layer uses, of finite numbers")
VECTORS = Limit("an input of more than one axis beside the batch", "flatten it to (batch, features) first")
MATRIX = Limit("a weight that is not a matrix", "use x (batch, features) times a constant matrix")
TRANSPOSED_INPUT = Limit("a transposed input (transA)", "export with transA=0")
BIAS_SHAPE = Limit("a bias that is not one number for each output", "give a bias of one number for each output")
ADD_SHAPES = Limit("operands of different shapes, or a constant", "add two results of one shape, or a constant bias of "
                   "one number a channel directly after a layer without bias")
ADD_ALPHA = Limit("a factor (alpha)", "add with alpha=1")
BATCH_AXIS = Limit("a shape that does not keep the batch axis first", "flatten from axis 1, or keep the first size")
CONSTANT_SHAPE = Limit("a shape that is computed", "export with a constant shape, or use Flatten")
ELEMENTS = Limit("elements that are not floating-point numbers", "export the network in float32")
LOWER_END = Limit("a lower end other than zero", "use a range that begins at 0, as ReLU6 does")
UPPER_END = Limit("an upper end that is no whole number in 1..2**20", "use a whole number, such as 6, or ReLU")
CLIP_CONSTANTS = Limit("ends that are computed", "export with constant ends")
CONCAT_AXIS = Limit("an axis other than the channels", "concatenate along axis 1")
CONSTANT_PART = Limit("a part that does not depend on the image", "concatenate results of layers only")
NOT_BEFORE_CONV2D = Limit("anything but convolutions that read the padded map", "set the padding of the layer itself")
PAD_VALUE = Limit("a value other than zero, or copies of the map (mode)", "pad with zeros")
PAD_AXES = Limit("padding of other axes than height and width", "pad height and width only")
CROPPING = Limit("negative padding", "take fewer pixels by the stride or the kernel of a convolution")
CONSTANT_PADDING = Limit("padding that is computed", "export with constant padding")
TENSORS = Limit("a value that is not a tensor", "use plain tensors")
NOT_AFTER_LAYER = Limit("an input other than the result of a Conv2d or Linear that nothing else reads",
                        "put it directly after that layer, or make it a 1×1 Conv2d of one group a channel")
BATCH_STATISTICS = Limit("the statistics of the batch (training mode, or none tracked)",
                         "use track_running_stats=True, and export in inference mode")
PIXEL_STATISTICS = Limit("statistics of each pixel (spatial=0)", "use one mean and variance a channel")
TRAINING_MODE = Limit("random dropping (training mode)", "export in inference mode")
MASK = Limit("its mask as a result", "use only the first result")
CONSTANT_RESULT = Limit("a constant as the network's result", "let the result depend on the image")
REDUCTION = Limit("a reduction over the batch", "use reduction='none': the loss is one number an image, the batch is "
                  "summed by the update")
LOSS_WEIGHTS = Limit("weights of the classes", "leave the class weights out")
IGNORE_INDEX = Limit("ignored labels (ignore_index)", "remove these images from the data")
LOG_PROBABILITY = Limit("the logarithms of the probabilities as a result", "use only the loss")
NESTEROV = Limit("mode 'nesterov'", "use mode='standard'")
DAMPENING = Limit("a gradient factor other than 1 (beta, after the first step)", "use beta=1")

OPEN_SIZE = Limit("sizes that are open or zero, other than an open batch", "export with a fixed image size")
NO_BATCH = Limit("no axis at all", "use images of the axes (batch, channels, height, width)")

WINDOW = ((Option.KERNEL, Span(1)), (Option.STRIDE, Span(1)), (Option.PADDING, Span(0)), (Option.DILATION, Span(1)))

IMAGE = Layer(
    "Input", (), (), Ranges(notes=("(batch, C, H, W) or (batch, features), floating point; the batch may be open",)),
    Ranges(notes=("one image input",)), (TENSORS, OPEN_SIZE, NO_BATCH))
CONV2D = Layer(
    "Conv2d", ("conv2d.default", "conv2d.padding"), ("Conv",),
    Ranges((*WINDOW, (Option.GROUPS, Span(1))), ("padding may differ on each side; bias optional",)),
    Ranges(((Option.KERNEL, Span(1, 16)),),
           ("with what a dilation puts between its taps; stride 1, 2, 4 or 8; depthwise, or groups of whole blocks of "
            "channels; any padding smaller than the kernel; bias optional",)),
    (PLANE, WEIGHT, ELEMENTS))
LINEAR = Layer(
    "Linear", ("linear.default",), ("Gemm", "MatMul"),
    Ranges(notes=("bias optional; alpha, beta and transB folded into the weights",)),
    Ranges(notes=("bias optional",)),
    (VECTORS, MATRIX, TRANSPOSED_INPUT, BIAS_SHAPE, WEIGHT, ELEMENTS))
BATCH_NORM = Layer(
    "BatchNorm", ("_native_batch_norm_legit_no_training.default",), ("BatchNormalization",),
    Ranges(notes=("directly after Conv2d or Linear; trained by the statistics of the batch, in float32 and, "
                  "with --batch-norm trained, in fixed point; otherwise folded into that layer's weight and bias where "
                  "fixed point begins, or when it is read for anything else",)),
    Ranges(notes=("trained, or folded",)),
    (NOT_AFTER_LAYER, BATCH_STATISTICS, PIXEL_STATISTICS, WEIGHT, ELEMENTS))
RELU = Layer(
    "ReLU", ("relu.default",), ("Relu",), Ranges(), Ranges(notes=("after Conv2d, Linear, a mean or Add",)), (ELEMENTS,))
CLIPPED_RELU = Layer(
    "ClippedReLU", ("relu6.default", "hardtanh.default", "clamp.default"), ("Clip",),
    Ranges(notes=("from 0 to a whole number of at least 1, such as ReLU6",)),
    Ranges(notes=("after Conv2d, Linear, a mean or Add",)),
    (LOWER_END, UPPER_END, CLIP_CONSTANTS, ELEMENTS))
MAX_POOL = Layer(
    "MaxPool", ("max_pool2d.default",), ("MaxPool",),
    Ranges(WINDOW, ("padding smaller than the kernel; a partial last window (ceil_mode)",)),
    Ranges(((Option.PADDING, Span(0, 0)), (Option.DILATION, Span(1, 1))),
           ("2×2 with stride 2, on maps of even height and width; after Conv2d (and ReLU)",)),
    (PLANE, INDICES, STORAGE_ORDER, WIDE_POOL_PADDING, ELEMENTS))
AVERAGE_POOL = Layer(
    "AveragePool", ("avg_pool2d.default", "adaptive_avg_pool2d.default"), ("AveragePool",),
    Ranges(WINDOW, ("padding smaller than the kernel, counted in the mean",
                    "adaptive where its output divides the input")),
    Ranges(((Option.KERNEL, Span(1, 16)),), ("stride 1, 2, 4 or 8",)),
    (PLANE, CEIL_MODE, COUNT_WITHOUT_PADDING, DIVISOR, WIDE_POOL_PADDING, UNEVEN_OUTPUT, ELEMENTS))
GLOBAL_AVERAGE_POOL = Layer(
    "GlobalAveragePool", ("adaptive_avg_pool2d.default", "mean.dim"), ("GlobalAveragePool",),
    Ranges(notes=("adaptive to 1×1, or the mean over height and width",)), Ranges(notes=("of a map up to 16×16",)),
    (PLANE, OTHER_AXES, ELEMENTS))
ADD = Layer(
    "Add", ("add.Tensor",), ("Add",), Ranges(notes=("two operands of one shape, or a bias after its layer",)),
    Ranges(notes=("of two layers' results, the later without a rectifier or pool of its own",)),
    (ADD_SHAPES, ADD_ALPHA, ELEMENTS))
CONCAT = Layer(
    "Concat", ("cat.default",), ("Concat",), Ranges(notes=("along the channels (axis 1), all else of one size",)), None,
    (CONCAT_AXIS, CONSTANT_PART, ELEMENTS))
PAD = Layer(
    "Pad", ("pad.default", "constant_pad_nd.default"), ("Pad",),
    Ranges(notes=("zeros around a map that only convolutions read: becomes their padding",)),
    Ranges(notes=("the padding of the convolution, smaller than its kernel",)),
    (PLANE, NOT_BEFORE_CONV2D, PAD_VALUE, PAD_AXES, CROPPING, CONSTANT_PADDING, ELEMENTS))
RESHAPE = Layer(
    "Reshape", ("flatten.using_ints", "view.default", "reshape.default", "_unsafe_view.default", "squeeze.dims",
                "squeeze.dim", "squeeze.default", "unsqueeze.default"), ("Flatten", "Reshape"),
    Ranges(notes=("keeps the batch axis first and the order of the elements",)),
    Ranges(notes=("to a vector, before Linear",)), (BATCH_AXIS, CONSTANT_SHAPE, ELEMENTS))
DROPOUT = Layer(
    "Dropout", ("dropout.default", "feature_dropout.default", "clone.default"), ("Dropout",),
    Ranges(notes=("inference only: left out",)), Ranges(notes=("left out",)), (TRAINING_MODE, MASK, ELEMENTS))
IDENTITY = Layer(
    "Identity", ("alias.default", "detach.default", "contiguous.default"), ("Identity",),
    Ranges(notes=("left out",)), Ranges(notes=("left out",)), (ELEMENTS,))
CONSTANT = Layer(
    "Constant", (), ("Constant",), Ranges(notes=("as a weight, a bias or a shape",)),
    Ranges(notes=("as a weight or a bias",)), (CONSTANT_RESULT, WEIGHT))
SOFTMAX_CROSS_ENTROPY = Layer(
    "Softmax cross-entropy (loss)", (), ("SoftmaxCrossEntropyLoss",),
    Ranges(notes=("logits (batch, classes); one number an image",)), Ranges(notes=("named in the recipe",)),
    (VECTORS, REDUCTION, LOSS_WEIGHTS, IGNORE_INDEX, LOG_PROBABILITY, ELEMENTS))
SQUARE_HINGE = Layer(
    "Square hinge (loss)", (), (), Ranges(notes=("logits (batch, classes); targets ±1",)),
    Ranges(notes=("named in the recipe",)))
MOMENTUM = Layer(
    "SGD with momentum (update)", (), ("ai.onnx.preview.training.Momentum",),
    Ranges(notes=("mode standard; beta 1, or the first step",)), Ranges(notes=("named in the recipe",)),
    (NESTEROV, DAMPENING))

LAYERS = (IMAGE, CONV2D, LINEAR, BATCH_NORM, RELU, CLIPPED_RELU, MAX_POOL, AVERAGE_POOL, GLOBAL_AVERAGE_POOL, ADD,
          CONCAT, PAD, RESHAPE, DROPOUT, IDENTITY, CONSTANT, SOFTMAX_CROSS_ENTROPY, SQUARE_HINGE, MOMENTUM)

OPSETS = Span(7, 28)       #: versions of ONNX's default operator set; before 7, Add and Gemm broadcast otherwise
IR_VERSIONS = Span(3, 14)  #: versions of the ONNX file format

ONNX_OPERATORS = tuple(operator for layer in LAYERS for operator in layer.onnx)

#: The form to use instead of a layer that is in no row, by a part of its operator's name in lower case.
NEAREST = (
    ("norm", "use BatchNorm2d directly after the convolution: it is folded into it"),
    ("dropout", "use torch.nn.Dropout, or give the function training=self.training"),
    ("softmax", "let the network end in its logits: the loss holds the softmax, and the largest logit is the class"),
    ("argmax", "let the network end in its logits"),
    *((name, "use ReLU or ReLU6") for name in ("relu", "elu", "silu", "swish", "mish", "tanh", "sigmoid", "softplus",
                                               "hardswish", "erf", "clamp", "clip")),
    ("transpose", "use Conv2d, or another order of the axes"),
    ("convtranspose", "use Conv2d"),
    ("conv", "use Conv2d"),
    ("adaptive_max_pool", "use MaxPool2d with its kernel and stride"),
    ("maxpool", "use MaxPool2d"),
    ("max_pool", "use MaxPool2d"),
    ("pad", "pad with zeros before a convolution"),
    ("mul", "fold a constant factor into the weights before it"),
    ("sub", "use Add, with the sign in the weights before it"),
    ("slice", "take every second pixel by the stride of a convolution, with a fixed 1×1 weight if need be"),
    ("reducemean", "use GlobalAveragePool"),
    ("addmm", "use torch.nn.Linear"),
    ("mm", "use torch.nn.Linear"),
    ("shape", "export with a fixed shape, or use Flatten"),
    ("upsample", "leave it out: maps may only shrink"),
)


def nearest_form(operator: str) -> str:
    """What to use instead of an unsupported ``operator``."""
    lowered = operator.lower()
    return next((form for part, form in NEAREST if part in lowered), "see docs/supported-layers.md for the layers "
                "that are")


def unsupported(where: str, operator: str) -> UnsupportedError:
    """The error for an operator that stands in no row, met at ``where``."""
    return UnsupportedError(f"{where} is not a supported layer; {nearest_form(operator)}")


def markdown() -> str:
    """The text of ``docs/supported-layers.md``."""
    lines = ["# Supported layers", "",
             "Generated from `espalier/frontend/supported.py` by `python -m espalier.frontend.supported`; "
             "a test compares the two.",
             "Everything else is refused before anything is built, with the layer's name, the reason and the nearest "
             "form that is taken.", "",
             f"ONNX files: operator set {OPSETS}, file format (IR) version {IR_VERSIONS}. Shapes are N C H W.", "",
             "| layer | torch (aten) | ONNX | training and interpreter | accelerator (RTL) |",
             "|---|---|---|---|---|"]
    lines += [f"| {layer.name} | {_code(layer.torch)} | {_code(layer.onnx)} | {layer.software} | "
              f"{'not in this version' if layer.engine is None else layer.engine} |" for layer in LAYERS]
    lines += ["", "## What each layer is refused with", "", "| layer | not taken with | instead |", "|---|---|---|"]
    lines += [f"| {layer.name} | {limit.rule} | {limit.remedy} |" for layer in LAYERS for limit in layer.limits]
    return "\n".join(lines) + "\n"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "–"


if __name__ == "__main__":
    print(markdown(), end="")
