"""The operators that an exported program may call, and what each may be given.

An explicit list: pure functions of dense tensors whose kernels check their own bounds, or are checked here.
Not among them: random, in-place and ``out=`` forms, views of raw storage (``set_``, resizing; ``as_strided`` may only
ask for the tensor itself), uninitialised memory, sparse, quantised or complex tensors, results whose size depends on
values, files, libraries and operators that call others. Arguments are bound to the operator's schema and must have
its types.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from riskaudit.errors import CheckpointError
from riskaudit.inputs.exported.replacements import REPLACEMENTS
from riskaudit.inputs.text import clean, words

NAMES = {
    "pointwise": """
        relu.default relu6.default sigmoid.default tanh.default silu.default gelu.default elu.default celu.default
        selu.default leaky_relu.default hardtanh.default softplus.default mish.default
        log_sigmoid.default prelu.default _prelu_kernel.default threshold.default hardshrink.default
        softshrink.default exp.default exp2.default expm1.default log.default log2.default
        log10.default log1p.default sqrt.default rsqrt.default reciprocal.default neg.default abs.default sign.default
        sin.default cos.default tan.default asin.default acos.default atan.default sinh.default cosh.default
        erf.default floor.default ceil.default round.default trunc.default square.default
        logical_not.default clone.default contiguous.default detach.default alias.default lift_fresh_copy.default
        clamp.default clamp.Tensor clamp_min.default clamp_max.default nan_to_num.default
        isnan.default isinf.default isfinite.default glu.default""",
    "of two": """
        add.Tensor add.Scalar sub.Tensor sub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar div.Tensor_mode
        div.Scalar_mode rsub.Tensor rsub.Scalar pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar maximum.default
        minimum.default eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar gt.Tensor
        gt.Scalar ge.Tensor ge.Scalar logical_and.default logical_or.default logical_xor.default bitwise_and.Tensor
        bitwise_or.Tensor bitwise_xor.Tensor bitwise_not.default where.self where.ScalarOther where.ScalarSelf
        where.Scalar masked_fill.Scalar masked_fill.Tensor atan2.default lerp.Scalar lerp.Tensor addcmul.default
        addcdiv.default floor_divide.default floor_divide.Scalar remainder.Scalar remainder.Tensor
        fmod.Scalar fmod.Tensor""",
    "reductions": """
        sum.default sum.dim_IntList mean.default mean.dim amax.default amin.default max.default max.dim min.default
        min.dim max.other min.other var.correction var.dim std.correction std.dim var_mean.correction argmax.default
        cumsum.default logsumexp.default any.default any.dim all.default all.dim linalg_vector_norm.default
        softmax.int log_softmax.int _softmax.default _log_softmax.default _safe_softmax.default""",
    "shapes": """
        view.default reshape.default flatten.using_ints unflatten.int permute.default
        transpose.int t.default mT.default numpy_T.default movedim.int swapaxes.default squeeze.default squeeze.dim
        squeeze.dims unsqueeze.default expand.default expand_as.default view_as.default reshape_as.default slice.Tensor
        select.int narrow.default chunk.default split.Tensor split.sizes split_with_sizes.default unbind.int cat.default
        stack.default repeat.default repeat_interleave.self_int tile.default roll.default flip.default pad.default
        constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default reflection_pad3d.default
        replication_pad1d.default replication_pad2d.default replication_pad3d.default pixel_shuffle.default
        pixel_unshuffle.default channel_shuffle.default im2col.default tril.default triu.default diagonal.default
        index.Tensor index_select.default gather.default embedding.default slice_scatter.default
        select_scatter.default meshgrid.indexing meshgrid.default concat.default unfold.default copy.default""",
    "creation": """
        full.default full_like.default fill.Scalar fill.Tensor zeros.default ones.default zeros_like.default
        ones_like.default new_zeros.default new_ones.default new_full.default scalar_tensor.default arange.default
        arange.start arange.start_step linspace.default""",
    "products": """
        linear.default addmm.default mm.default bmm.default baddbmm.default matmul.default mv.default dot.default
        einsum.default bilinear.default outer.default conv1d.default conv2d.default conv3d.default conv1d.padding
        conv2d.padding conv3d.padding conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input
        convolution.default""",
    "norms and pools": """
        batch_norm.default layer_norm.default native_layer_norm.default group_norm.default instance_norm.default
        rms_norm.default max_pool1d.default max_pool2d.default max_pool3d.default
        max_pool2d_with_indices.default max_pool3d_with_indices.default avg_pool1d.default avg_pool2d.default
        avg_pool3d.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default adaptive_avg_pool3d.default
        _adaptive_avg_pool2d.default _adaptive_avg_pool3d.default adaptive_max_pool1d.default
        adaptive_max_pool2d.default adaptive_max_pool3d.default upsample_nearest1d.vec upsample_nearest2d.vec
        upsample_nearest3d.vec upsample_linear1d.vec upsample_bilinear2d.vec upsample_trilinear3d.vec
        upsample_bicubic2d.vec upsample_nearest1d.default upsample_nearest2d.default upsample_nearest3d.default
        upsample_linear1d.default upsample_bilinear2d.default upsample_trilinear3d.default
        upsample_bicubic2d.default""",
    "types": """
        to.dtype to.dtype_layout to.device _to_copy.default type_as.default dropout.default feature_dropout.default
        alpha_dropout.default feature_alpha_dropout.default""",
}
ALLOWED = frozenset(f"aten.{name}" for group in NAMES.values() for name in words(group)) | REPLACEMENTS.keys()

MAX_DIMENSIONS = 64
MAX_LIST = 4096
_AT_LEAST_ONE = words("""
    kernel_size stride dilation groups num_groups upscale_factor downscale_factor chunks step split_size
""")
_NOT_NEGATIVE = words("""
    padding output_padding output_size repeats split_sizes normalized_shape num_layers steps length
""")
_FACTORS = ("scale_factors", "scales", "scales_d", "scales_h", "scales_w")
_STRINGS: Mapping[str, Sequence[str]] = {
    "padding": ("same", "valid"),
    "approximate": ("none", "tanh"),
    "rounding_mode": ("floor", "trunc"),
    "mode": ("constant", "reflect", "replicate", "circular"),
    "indexing": ("ij", "xy"),
}
_EQUATION = re.compile(r"[a-zA-Z., ]{1,200}(->[a-zA-Z. ]{0,60})?")
# Integer division by -1 of the smallest integer is a trap of the processor, which ends the process.
_DIVISIONS = frozenset({"aten.div.Tensor_mode", "aten.div.Scalar_mode"})
# Also with a number as first operand.
_NUMBER_FIRST = frozenset({"aten.add.Tensor", "aten.sub.Tensor", "aten.mul.Tensor", "aten.div.Tensor"})
# Only so many arguments are passed on: the others are about the gradient's layout.
_WITHOUT_OPTIONS = {"aten.embedding.default": 2, "aten.gather.default": 3}


class ArgumentBoundsError(ValueError):
    """An argument of an operator that isn't what its schema or its bounds allow."""


def overload_of(name: str) -> Any:
    """The operator overload of torch behind an allowed name ``aten.NAME.OVERLOAD``."""
    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


@dataclass(frozen=True)
class _Argument:
    """One argument of an operator's schema; its kind as the schema writes it, say ``Optional[List[int]]``."""

    name: str
    kind: str
    kwarg_only: bool
    has_default: bool


class Operator:
    """One allowed operator ``torch.ops.aten.NAME.OVERLOAD``: binds arguments to its schema, checks and calls.

    Raises:
        CheckpointError: not among `ALLOWED`.
    """

    def __init__(self, target: str) -> None:
        self.name = target.removeprefix("torch.ops.")
        if not target.startswith("torch.ops.") or self.name not in ALLOWED:
            raise CheckpointError(
                f"the exported program calls {clean(target, 60)}, which isn't a plain tensor operator that is known "
                "here; export it again with program.run_decompositions(), or without it where it was called, or save "
                "`model.state_dict()` and use `arch=file.py:factory`"
            )
        overload = overload_of(self.name)
        self.function: Callable[..., Any] = REPLACEMENTS.get(self.name, overload)
        self.arguments = tuple(
            _Argument(
                argument.name, str(argument.real_type), bool(argument.kwarg_only), bool(argument.has_default_value())
            )
            for argument in overload._schema.arguments
        )
        returns = overload._schema.returns
        self.is_view = any(result.alias_info is not None for result in returns)

    def bind(self, positional: Sequence[Any], keyword: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by name.

        Raises:
            ArgumentBoundsError: too many, unknown, given twice or missing.
        """
        names = [argument.name for argument in self.arguments if not argument.kwarg_only]
        if len(positional) > len(names):
            raise ArgumentBoundsError(f"{self.name} takes {len(names)} arguments, found {len(positional)}")
        bound = dict(zip(names, positional, strict=False))
        for name, value in keyword.items():
            if name in bound or all(name != argument.name for argument in self.arguments):
                raise ArgumentBoundsError(f"{self.name} takes no further argument {clean(name, 30)}")
            bound[name] = value
        for argument in self.arguments:
            if argument.name not in bound and not argument.has_default:
                raise ArgumentBoundsError(f"{self.name} lacks its argument {argument.name}")
        return bound

    def call(self, bound: Mapping[str, Any]) -> Any:
        """The operator's result for arguments by name, each checked first.

        Raises:
            ArgumentBoundsError: an argument of another type or out of bounds.
        """
        positional: list[Any] = []
        keyword: dict[str, Any] = {}
        in_order = True
        for argument in self.arguments:
            if argument.name not in bound:
                in_order = False
                continue
            value = bound[argument.name]
            self._check(argument, value)
            if in_order and not argument.kwarg_only:
                positional.append(value)
            else:
                keyword[argument.name] = value
        if self.name in _DIVISIONS and not (isinstance(positional[0], Tensor) and positional[0].is_floating_point()):
            raise ArgumentBoundsError(f"{self.name} of integers")
        if self.name in _WITHOUT_OPTIONS:
            # Sparse gradients among them.
            positional, keyword = positional[: _WITHOUT_OPTIONS[self.name]], {}
        return self.function(*positional, **keyword)

    def _check(self, argument: _Argument, value: Any) -> None:
        kind, name = argument.kind, argument.name
        if kind.startswith("Optional["):
            if value is None:
                return
            kind = kind[len("Optional[") : -1]
        if kind == "Tensor" and isinstance(value, int | float) and (name == "other" or self.name in _NUMBER_FIRST):
            # torch takes a number for an operand, and torch.export writes one.
            kind = "number"
        if not _fits(kind, value):
            raise ArgumentBoundsError(f"{self.name} got a {type(value).__name__} as {name}, expected {kind}")
        if isinstance(value, Tensor) or name in ("dtype", "device", "layout", "memory_format"):
            return
        if name in ("pin_memory", "non_blocking", "implicit", "enable_gqa") and value:
            raise ArgumentBoundsError(f"{self.name} with {name}")
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                if not (_EQUATION.fullmatch(item) if name == "equation" else item in _STRINGS.get(name, ())):
                    raise ArgumentBoundsError(f"{self.name} got {clean(item, 20)} as {name}")
            elif isinstance(item, int | float) and not isinstance(item, bool):
                self._check_number(name, item, whole=kind in ("int", "List[int]"))

    def _check_number(self, name: str, value: float, *, whole: bool) -> None:
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ArgumentBoundsError(f"{self.name} got a number beyond 64 bits as {name}")
        lowest = 1 if name in _AT_LEAST_ONE else 0 if name in _NOT_NEGATIVE else None
        if whole and lowest is not None and not lowest <= value < 2**31:
            raise ArgumentBoundsError(f"{self.name} got {value} as {name}, expected {lowest} or more")
        if (name.startswith("dim") or name in ("axis0", "axis1")) and not -MAX_DIMENSIONS <= value <= MAX_DIMENSIONS:
            raise ArgumentBoundsError(f"{self.name} got {value} as {name}")
        if name in _FACTORS and not 0 < value < 2**31:
            raise ArgumentBoundsError(f"{self.name} got {value} as {name}, expected a positive factor")


def _fits(kind: str, value: Any) -> bool:
    if kind == "Tensor":
        return isinstance(value, Tensor)
    if kind.startswith("List["):
        inner = kind[len("List[") : -1]
        optional = inner.startswith("Optional[")
        inner = inner[len("Optional[") : -1] if optional else inner
        return (
            isinstance(value, list)
            and len(value) <= (MAX_LIST if inner == "Tensor" else MAX_DIMENSIONS * 16)
            and all((optional and item is None) or _fits(inner, item) for item in value)
        )
    is_bool = isinstance(value, bool)
    if kind in ("int", "SymInt"):
        return isinstance(value, int) and not is_bool
    if kind == "float":
        return isinstance(value, int | float) and not is_bool
    if kind == "number":
        return isinstance(value, int | float)
    classes: Mapping[str, type] = {
        "bool": bool,
        "str": str,
        "ScalarType": torch.dtype,
        "Device": torch.device,
        "Layout": torch.layout,
        "MemoryFormat": torch.memory_format,
    }
    return kind in classes and isinstance(value, classes[kind])


# Arithmetic on sizes.

_ARITHMETIC: Mapping[str, tuple[int, Callable[..., Any]]] = {
    **{f"_operator.{name}": (2, getattr(operator, name)) for name in words("add sub mul floordiv mod truediv")},
    **{f"_operator.{name}": (2, getattr(operator, name)) for name in words("eq ne lt le gt ge")},
    **{f"_operator.{name}": (1, getattr(operator, name)) for name in words("neg pos")},
    **{f"math.{name}": (1, getattr(math, name)) for name in words("ceil floor trunc")},
    "torch.sym_int": (1, int),
    "torch.sym_float": (1, float),
    "torch.sym_max": (2, max),
    "torch.sym_min": (2, min),
    "torch.sym_not": (1, operator.not_),
    "torch.ops.aten.sym_size.int": (2, lambda tensor, dim: tensor.shape[dim]),
    "torch.ops.aten.sym_numel.default": (1, lambda tensor: tensor.numel()),
}


class Arithmetic:
    """One operation on sizes: its operands are numbers of 64 bits, and so must its result be."""

    is_view = False

    def __init__(self, target: str) -> None:
        self.name = target
        self.count, self.function = _ARITHMETIC[target]

    def bind(self, positional: Sequence[Any], keyword: Mapping[str, Any]) -> dict[str, Any]:
        """The operands by position."""
        values = [*positional, *keyword.values()]
        if len(values) != self.count:
            raise ArgumentBoundsError(f"{self.name} takes {self.count} operands, found {len(values)}")
        return {str(number): value for number, value in enumerate(values)}

    def call(self, bound: Mapping[str, Any]) -> Any:
        """The result.

        Raises:
            ArgumentBoundsError: operands that are no numbers, a zero divisor, or a result beyond 64 bits.
        """
        values = list(bound.values())
        tensors = [isinstance(value, Tensor) for value in values]
        expected = [self.name.startswith("torch.ops.")] + [False] * (self.count - 1)
        if tensors != expected or not all(isinstance(value, int | float | Tensor) for value in values):
            raise ArgumentBoundsError(f"{self.name} of something else than numbers")
        try:
            result = self.function(*values)
        except (ArithmeticError, IndexError, ValueError) as cause:
            raise ArgumentBoundsError(f"{self.name} has no result ({clean(cause)})") from cause
        if not -(2**63) <= result < 2**63:
            raise ArgumentBoundsError(f"{self.name} gives a number beyond 64 bits")
        return result


def operation(target: str) -> Operator | Arithmetic:
    """What a node of the program calls.

    Raises:
        CheckpointError: neither an allowed operator nor arithmetic on sizes.
    """
    return Arithmetic(target) if target in _ARITHMETIC else Operator(target)
