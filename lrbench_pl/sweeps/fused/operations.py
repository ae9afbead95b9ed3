"""Operations on the activations of many networks at once, each with its gradient and its rule under ``vmap``.

Each exists twice: for one network, which is what a layer calls under ``torch.func.vmap``, and for all of them, with a
first dimension of replicas, which runs the Triton kernels of :mod:`lrbench_pl.sweeps.fused.kernels`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor
from torch.nn.functional import avg_pool2d, batch_norm, max_pool2d

from lrbench_pl.sweeps.fused import kernels

_Pair = tuple[int, int]

# -- the kernels, called on all replicas ------------------------------------------------------------------------


def _rows_last(x: Tensor) -> Tensor:
    """Return (R, B, C, H, W) as contiguous (R, B, H, W, C)."""
    return x.permute(0, 1, 3, 4, 2).contiguous()


def _width(n: int, most: int = 128) -> int:
    """Return the width of a tile over n columns: a power of two, at least the 16 of a matrix product."""
    return min(most, max(16, int(triton.next_power_of_2(n))))


def convolution_tiles(run: int, outputs: int, itemsize: int, shared_memory: int) -> tuple[int, int, int]:
    """Return pixels, places of the window and channels of a tile, whose copies fit into the shared memory.

    Args:
        run: Neighbours in memory that a line of the window covers: its width times the channels of the input.
        outputs: Channels of the output.
        itemsize: Bytes of a number.
        shared_memory: Bytes that a program may use.

    Example:
        >>> convolution_tiles(run=192, outputs=64, itemsize=2, shared_memory=101376)
        (128, 64, 64)
    """
    columns = _width(outputs)
    most = 64 if itemsize == 2 else 32
    inner = next((size for size in (most, 32, 16) if run % size == 0), min(most, _width(run, 32)))
    wide = 256 if itemsize == 4 and columns <= 64 else 128
    tall = wide if (wide + columns) * inner * itemsize * _STAGES <= shared_memory else 128
    return tall, inner, columns


_STAGES = 3  # copies of a tile that are on their way at once


def _shared_memory(device: torch.device) -> int:
    """Return the bytes that a program may use: those of the device, or of the GPUs of consumers."""
    least = 99 * 1024
    if device.type != "cuda":
        return least
    return int(getattr(torch.cuda.get_device_properties(device), "shared_memory_per_block_optin", least))


def _precision() -> str:
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


def _convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, size: _Pair, stride: _Pair, padding: _Pair, spread: _Pair
) -> Tensor:
    """Convolve (R or 1, B, H, W, C) with weights (R, KH, KW, C, K); return (R, B, *size, K)."""
    rows, kh, kw, channels, outputs = weight.shape
    batch, height, width = x.shape[1:4]
    pixels = batch * size[0] * size[1]
    out = x.new_empty(rows, batch, *size, outputs)
    bias = None if bias is None else bias.contiguous()
    tall, inner, columns = convolution_tiles(kw * channels, outputs, x.element_size(), _shared_memory(x.device))
    kernels.convolution[(triton.cdiv(pixels, tall), rows, triton.cdiv(outputs, columns))](
        x, weight, bias, out, 0 if len(x) == 1 else x.stride(0), height, width, size[0], size[1], pixels,
        channels, outputs, kh, kw, *stride, *padding, *spread, bias is not None,
        _precision(), tall, inner, columns,
        num_warps=8 if tall == 256 or columns > 64 else 4, num_stages=_STAGES,
    )  # fmt: skip
    return out


def _convolve_backward(
    x: Tensor, gradient: Tensor, kernel: _Pair, stride: _Pair, padding: _Pair, has_bias: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weights, (R, K, C, KH, KW), and bias, (R, K), in float32."""
    rows, batch, out_height, out_width, outputs = gradient.shape
    height, width, channels = x.shape[2:]
    pixels, elements = batch * out_height * out_width, kernel[0] * kernel[1] * channels
    by_line = channels % 16 == 0
    tile, columns, tall = _width(kernel[1] * channels if by_line else elements, 64), _width(outputs, 64), 64
    tiles = kernel[0] * triton.cdiv(kernel[1] * channels, tile) if by_line else triton.cdiv(elements, tile)
    programs = rows * tiles * triton.cdiv(outputs, columns)
    chunks = max(1, min(64, triton.cdiv(2048, programs), pixels // (8 * tall)))
    chunk = triton.cdiv(triton.cdiv(pixels, chunks), tall) * tall
    sums = x.new_empty(rows, chunks, elements, outputs, dtype=torch.float32)
    bias_sums = x.new_empty(rows, chunks, outputs, dtype=torch.float32)
    kernels.convolution_weight_gradient[(tiles * triton.cdiv(outputs, columns), chunks, rows)](
        x, gradient, sums, bias_sums, 0 if len(x) == 1 else x.stride(0), height, width, out_height, out_width,
        pixels, chunk, channels, outputs, *kernel, *stride, *padding, has_bias, by_line,
        _precision(), tall, tile, columns, tiles, num_warps=4, num_stages=_STAGES,
    )  # fmt: skip
    found = sums.sum(1).view(rows, *kernel, channels, outputs).permute(0, 4, 3, 1, 2)
    return found, bias_sums.sum(1)


def _tiles(x: Tensor) -> tuple[int, int, int, int]:
    """Return rows, rows per tile, columns per tile, and chunks for the reductions of (R, ..., C)."""
    channels = x.shape[-1]
    rows = x[0].numel() // channels
    columns = triton.next_power_of_2(channels)
    tall = max(1, 4096 // columns)
    chunks = max(1, min(64, triton.cdiv(2048, len(x)), rows // (4 * tall)))
    return rows, tall, columns, chunks


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel of (R, ..., C), shape (R, C)."""
    rows, tall, columns, chunks = _tiles(x)
    chunk = triton.cdiv(triton.cdiv(rows, chunks), tall) * tall
    counts, means, squares = x.new_empty(3, len(x), chunks, x.shape[-1], dtype=torch.float32)
    kernels.moments[(chunks, len(x))](x, counts, means, squares, rows, chunk, x.shape[-1], tall, columns)
    mean = (means * counts).sum(1) / rows
    away = means - mean.unsqueeze(1)
    return mean, (squares + counts * away * away).sum(1) / rows


def _normalise(
    x: Tensor, residual: Tensor | None, mean: Tensor, scale: Tensor, shift: Tensor, has_relu: bool
) -> Tensor:
    rows, tall, columns, _ = _tiles(x)
    out = torch.empty_like(x)
    kernels.normalise[(triton.cdiv(rows, tall), len(x))](
        x, residual, mean, scale, shift, out, rows, x.shape[-1], residual is not None, has_relu, tall, columns
    )
    return out


def _normalise_backward(
    x: Tensor, output: Tensor | None, gradient: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, has_residual: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the gradients of input, weight, bias and residual.

    Args:
        x: What was normalised, (R, B, H, W, C).
        output: What ReLU returned; None if there was none.
        gradient: That of the output.
        weight: The norm's, (R, C).
        mean: Of the batch, (R, C).
        scale: 1 / standard deviation of the batch, (R, C).
        has_residual: Whether one was added.
    """
    rows, tall, columns, chunks = _tiles(x)
    chunk = triton.cdiv(triton.cdiv(rows, chunks), tall) * tall
    sums, products = x.new_empty(2, len(x), chunks, x.shape[-1], dtype=torch.float32)
    has_relu = output is not None
    kernels.gradient_moments[(chunks, len(x))](
        x, output, gradient, mean, sums, products, rows, chunk, x.shape[-1], has_relu, tall, columns
    )
    bias_gradient, product = sums.sum(1), products.sum(1)
    factor = weight * scale
    slope, shift = -factor * scale * scale * product / rows, -factor * bias_gradient / rows
    out = torch.empty_like(x)
    of_residual = gradient if has_residual else None
    if has_residual and has_relu:
        of_residual = torch.empty_like(gradient)
    kernels.normalise_gradient[(triton.cdiv(rows, tall), len(x))](
        x, output, gradient, mean, factor, slope, shift, out, of_residual, rows,
        x.shape[-1], has_residual and has_relu, has_relu, tall, columns,
    )  # fmt: skip
    return out, product * scale, bias_gradient, of_residual


def _pixels(x: Tensor) -> tuple[tuple[int, int], int, int, int]:
    """Return the grid over all pixels and channels of (R, B, H, W, C), pixels in all, and those of a tile."""
    columns = triton.next_power_of_2(min(x.shape[-1], 128))
    tall = max(1, 1024 // columns)
    rows = x.numel() // x.shape[-1]
    return (triton.cdiv(rows, tall), triton.cdiv(x.shape[-1], columns)), rows, tall, columns


# -- operations -------------------------------------------------------------------------------------------------


def _operation(schema: str) -> Callable[[Callable[..., Any]], Any]:
    """Register a function as an operation of torch, so that its gradient and its ``vmap`` can be given."""

    def register(function: Callable[..., Any]) -> Any:
        return torch.library.custom_op(f"lrbench_pl::{function.__name__}", function, mutates_args=(), schema=schema)

    return register


def _in_front(tensor: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """Return a tensor with the dimension of the replicas in front."""
    if tensor is None:
        return None
    return tensor.movedim(dim, 0) if dim is not None else tensor.unsqueeze(0).expand(size, *tensor.shape)


_CONVOLVE = "(Tensor x, Tensor weight, Tensor? bias, int[] stride, int[] padding) -> Tensor"


@_operation(_CONVOLVE)
def stacked_convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Convolve (R or 1, B, C, H, W) with weights (R, K, C, KH, KW)."""
    kernel = weight.shape[3:]
    size = tuple((n + 2 * p - k) // s + 1 for n, p, k, s in zip(x.shape[3:], padding, kernel, stride, strict=True))
    packed = x.new_empty(len(weight), *kernel, weight.shape[2], weight.shape[1])
    packed.copy_(weight.permute(0, 3, 4, 2, 1))
    found = _convolve(_rows_last(x), packed, bias, size, tuple(stride), tuple(padding), (1, 1))  # type: ignore[arg-type]
    return found.permute(0, 1, 4, 2, 3)


@_operation("(Tensor gradient, Tensor x, Tensor weight, int[] stride, int[] padding) -> Tensor")
def stacked_convolve_input_gradient(
    gradient: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Return the gradient of the input of :func:`stacked_convolve`."""
    kernel = weight.shape[3:]
    packed = x.new_empty(len(weight), *kernel, weight.shape[1], weight.shape[2])
    packed.copy_(weight.flip(3, 4).permute(0, 3, 4, 1, 2))
    around = (kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1])
    size = (x.shape[3], x.shape[4])
    found = _convolve(_rows_last(gradient), packed, None, size, (1, 1), around, tuple(stride))  # type: ignore[arg-type]
    return found.permute(0, 1, 4, 2, 3)


@_operation("(Tensor gradient, Tensor x, int[] kernel, int[] stride, int[] padding, bool has_bias) -> (Tensor, Tensor)")
def stacked_convolve_weight_gradient(
    gradient: Tensor, x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], has_bias: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of weight and bias of :func:`stacked_convolve`."""
    found = _convolve_backward(
        _rows_last(x), _rows_last(gradient), tuple(kernel), tuple(stride), tuple(padding), has_bias  # type: ignore[arg-type]
    )  # fmt: skip
    return found[0].contiguous(), found[1]


def _convolve_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)
    ctx.has_bias = bias is not None


def _convolve_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    x, weight = ctx.saved_tensors
    of_x = None
    if ctx.needs_input_grad[0]:
        of_x = stacked_convolve_input_gradient(gradient, x, weight, ctx.stride, ctx.padding)
        if len(x) != len(of_x):
            of_x = of_x.sum(0, keepdim=True)
    of_weight, of_bias = stacked_convolve_weight_gradient(
        gradient, x, list(weight.shape[3:]), ctx.stride, ctx.padding, ctx.has_bias
    )
    return of_x, of_weight, of_bias if ctx.has_bias else None, None, None


stacked_convolve.register_autograd(_convolve_gradients, setup_context=_convolve_setup)


@_operation(_CONVOLVE)
def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Convolve (B, C, H, W), in float32 where the weight is."""
    found = torch.conv2d(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype), stride, padding)
    return found.contiguous()


@convolve.register_vmap  # type: ignore[untyped-decorator]
def _convolve_stacked(
    info: Any, dims: tuple[int | None, ...], x: Tensor, weight: Tensor, bias: Tensor | None, *places: Any
) -> tuple[Tensor, int]:
    x = x.unsqueeze(0) if dims[0] is None else x.movedim(dims[0], 0)
    weight = _in_front(weight, dims[1], info.batch_size)  # type: ignore[assignment]
    return stacked_convolve(x, weight, _in_front(bias, dims[2], info.batch_size), *places), 0


_NORMALISE = (
    "(Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps, bool has_relu) -> (Tensor, Tensor, Tensor)"
)


@_operation(_NORMALISE)
def stacked_batch_normalise(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, has_relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (R, B, C, H, W) normalised, and mean and variance of each channel, (R, C)."""
    rows = _rows_last(x)
    mean, variance = _moments(rows)
    added = None if residual is None else _rows_last(residual)
    found = _normalise(rows, added, mean, weight * (variance + eps).rsqrt(), bias.contiguous(), has_relu)
    return found.permute(0, 1, 4, 2, 3), mean, variance


@_operation(
    "(Tensor gradient, Tensor x, Tensor? output, Tensor weight, Tensor mean, Tensor variance, float eps, "
    "bool has_residual) -> (Tensor, Tensor, Tensor, Tensor)"
)
def stacked_batch_normalise_gradient(
    gradient: Tensor, x: Tensor, output: Tensor | None, weight: Tensor, mean: Tensor, variance: Tensor, eps: float,
    has_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return the gradients of input, weight, bias and residual of :func:`stacked_batch_normalise`."""
    scale = (variance + eps).rsqrt()
    found, of_weight, of_bias, of_residual = _normalise_backward(
        _rows_last(x), None if output is None else _rows_last(output), _rows_last(gradient), weight, mean, scale,
        has_residual,
    )  # fmt: skip
    is_own = of_residual is not None and output is not None  # else the gradient itself, which must not be returned
    added = of_residual.permute(0, 1, 4, 2, 3) if is_own else gradient.new_empty(0)  # type: ignore[union-attr]
    return found.permute(0, 1, 4, 2, 3), of_weight, of_bias, added


def _normalise_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, _, residual, ctx.eps, has_relu = inputs
    ctx.has_residual = residual is not None
    ctx.save_for_backward(x, output[0] if has_relu else None, weight, output[1], output[2])
    ctx.mark_non_differentiable(output[1], output[2])


def _normalise_gradients(ctx: Any, gradient: Tensor, *_: Any) -> tuple[Any, ...]:
    found, of_weight, of_bias, of_residual = stacked_batch_normalise_gradient(
        gradient, *ctx.saved_tensors, ctx.eps, ctx.has_residual
    )
    if not ctx.has_residual:
        of_residual = None
    elif not of_residual.numel():
        of_residual = gradient
    return found, of_weight, of_bias, of_residual, None, None


stacked_batch_normalise.register_autograd(_normalise_gradients, setup_context=_normalise_setup)


@_operation(_NORMALISE)
def batch_normalise(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, has_relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (B, C, H, W) normalised, and mean and variance of each channel."""
    variance, mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
    found = batch_norm(x, None, None, weight, bias, True, 0.0, eps)
    found = found if residual is None else found + residual
    return found.relu() if has_relu else found, mean, variance


@batch_normalise.register_vmap  # type: ignore[untyped-decorator]
def _batch_normalise_stacked(
    info: Any, dims: tuple[int | None, ...], *inputs: Any
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[int, int, int]]:
    tensors = [_in_front(tensor, dim, info.batch_size) for tensor, dim in zip(inputs[:4], dims[:4], strict=True)]
    return stacked_batch_normalise(*tensors, *inputs[4:]), (0, 0, 0)


_RESPONSE = "(Tensor x, int size, float weight) -> Tensor"


@_operation(_RESPONSE)
def stacked_response_normalise(x: Tensor, size: int, weight: float) -> Tensor:
    """Return (R, B, C, H, W) divided by (1 + weight * sum of squares over a window) ** 0.75."""
    inputs = _rows_last(x)
    grid, rows, tall, columns = _pixels(inputs)
    out = torch.empty_like(inputs)
    kernels.response_norm[grid](inputs, out, rows, *inputs.shape[2:4], weight, inputs.shape[-1], size, tall, columns)
    return out.permute(0, 1, 4, 2, 3)


@_operation("(Tensor gradient, Tensor x, int size, float weight) -> Tensor")
def stacked_response_normalise_gradient(gradient: Tensor, x: Tensor, size: int, weight: float) -> Tensor:
    """Return the gradient of the input of :func:`stacked_response_normalise`."""
    inputs, gradients = _rows_last(x), _rows_last(gradient)
    grid, rows, tall, columns = _pixels(inputs)
    slope, out = torch.empty_like(inputs, dtype=torch.float32), torch.empty_like(inputs)
    shared = (rows, *inputs.shape[2:4], weight, inputs.shape[-1], size, tall, columns)
    kernels.response_norm_slope[grid](inputs, gradients, slope, *shared)
    kernels.response_norm_gradient[grid](inputs, gradients, slope, out, *shared)
    return out.permute(0, 1, 4, 2, 3)


def _response_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.size, ctx.weight = inputs
    ctx.save_for_backward(x)


def _response_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return stacked_response_normalise_gradient(gradient, *ctx.saved_tensors, ctx.size, ctx.weight), None, None


stacked_response_normalise.register_autograd(_response_gradients, setup_context=_response_setup)


@_operation(_RESPONSE)
def response_normalise(x: Tensor, size: int, weight: float) -> Tensor:
    """Return (B, C, H, W) divided by (1 + weight * sum of squares over a window) ** 0.75."""
    energy = avg_pool2d(x * x, size, stride=1, padding=size // 2)
    return x * (1 + weight * size**2 * energy) ** -0.75


@response_normalise.register_vmap  # type: ignore[untyped-decorator]
def _response_normalise_stacked(
    info: Any, dims: tuple[int | None, ...], x: Tensor, size: int, weight: float
) -> tuple[Tensor, int]:
    return stacked_response_normalise(_in_front(x, dims[0], info.batch_size), size, weight), 0


_MAX_POOL = "(Tensor x, int[] sizes, bool ceil_mode) -> (Tensor, Tensor)"


def _pooled_size(x: Tensor, sizes: Sequence[int], ceil_mode: bool) -> torch.Size:
    """Return height and width of what a pooling of (..., H, W) returns; sizes are of kernel, stride and padding."""
    image = torch.empty(1, 1, *x.shape[-2:], device="meta")
    pooled = max_pool2d(image, list(sizes[:2]), list(sizes[2:4]), list(sizes[4:]), ceil_mode=ceil_mode)
    return pooled.shape[2:]


@_operation(_MAX_POOL)
def stacked_max_pool(x: Tensor, sizes: Sequence[int], ceil_mode: bool) -> tuple[Tensor, Tensor]:
    """Return (R, B, C, H, W) pooled, and the place of each maximum in its window."""
    inputs, size = _rows_last(x), _pooled_size(x, sizes, ceil_mode)
    out = inputs.new_empty(*inputs.shape[:2], *size, inputs.shape[-1])
    places = torch.empty_like(out, dtype=torch.uint8)
    grid, rows, tall, columns = _pixels(out)
    kernels.max_pool[grid](inputs, out, places, rows, *x.shape[3:], *size, x.shape[2], *sizes, tall, columns)
    return out.permute(0, 1, 4, 2, 3), places


@_operation("(Tensor gradient, Tensor places, int[] size, int[] sizes) -> Tensor")
def stacked_max_pool_gradient(gradient: Tensor, places: Tensor, size: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """Return the gradient of the input, of this height and width, of :func:`stacked_max_pool`."""
    gradients = _rows_last(gradient)
    out = gradients.new_empty(*gradients.shape[:2], *size, gradients.shape[-1])
    grid, rows, tall, columns = _pixels(out)
    kernels.max_pool_gradient[grid](
        gradients, places, out, rows, *size, *gradients.shape[2:4], gradients.shape[-1], *sizes, tall, columns
    )
    return out.permute(0, 1, 4, 2, 3)


def _max_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.sizes, ctx.size = inputs[1], list(inputs[0].shape[3:])
    ctx.save_for_backward(output[1])
    ctx.mark_non_differentiable(output[1])


def _max_pool_gradients(ctx: Any, gradient: Tensor, _: Any) -> tuple[Any, ...]:
    return stacked_max_pool_gradient(gradient, *ctx.saved_tensors, ctx.size, ctx.sizes), None, None


stacked_max_pool.register_autograd(_max_pool_gradients, setup_context=_max_pool_setup)


@_operation(_MAX_POOL)
def max_pool(x: Tensor, sizes: Sequence[int], ceil_mode: bool) -> tuple[Tensor, Tensor]:
    """Return (B, C, H, W) pooled; the places are for all networks at once only."""
    pooled = max_pool2d(x, list(sizes[:2]), list(sizes[2:4]), list(sizes[4:]), ceil_mode=ceil_mode)
    return pooled, x.new_empty(0)


@max_pool.register_vmap  # type: ignore[untyped-decorator]
def _max_pool_stacked(
    info: Any, dims: tuple[int | None, ...], x: Tensor, *sizes: Any
) -> tuple[tuple[Tensor, Tensor], tuple[int, int]]:
    return stacked_max_pool(_in_front(x, dims[0], info.batch_size), *sizes), (0, 0)


_AVERAGE_POOL = "(Tensor x, int[] sizes, bool ceil_mode, bool count_include_pad) -> Tensor"


@_operation(_AVERAGE_POOL)
def stacked_average_pool(x: Tensor, sizes: Sequence[int], ceil_mode: bool, count_include_pad: bool) -> Tensor:
    """Return (R, B, C, H, W) pooled."""
    inputs, size = _rows_last(x), _pooled_size(x, sizes, ceil_mode)
    out = inputs.new_empty(*inputs.shape[:2], *size, inputs.shape[-1])
    grid, rows, tall, columns = _pixels(out)
    kernels.average_pool[grid](
        inputs, out, rows, *x.shape[3:], *size, x.shape[2], *sizes, count_include_pad, tall, columns
    )
    return out.permute(0, 1, 4, 2, 3)


@_operation("(Tensor gradient, int[] size, int[] sizes, bool count_include_pad) -> Tensor")
def stacked_average_pool_gradient(
    gradient: Tensor, size: Sequence[int], sizes: Sequence[int], count_include_pad: bool
) -> Tensor:
    """Return the gradient of the input, of this height and width, of :func:`stacked_average_pool`."""
    gradients = _rows_last(gradient)
    out = gradients.new_empty(*gradients.shape[:2], *size, gradients.shape[-1])
    grid, rows, tall, columns = _pixels(out)
    kernels.average_pool_gradient[grid](
        gradients, out, rows, *size, *gradients.shape[2:4], gradients.shape[-1], *sizes, count_include_pad, tall,
        columns,
    )  # fmt: skip
    return out.permute(0, 1, 4, 2, 3)


def _average_pool_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.sizes, ctx.is_padded, ctx.size = inputs[1], inputs[3], list(inputs[0].shape[3:])


def _average_pool_gradients(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
    return stacked_average_pool_gradient(gradient, ctx.size, ctx.sizes, ctx.is_padded), None, None, None


stacked_average_pool.register_autograd(_average_pool_gradients, setup_context=_average_pool_setup)


@_operation(_AVERAGE_POOL)
def average_pool(x: Tensor, sizes: Sequence[int], ceil_mode: bool, count_include_pad: bool) -> Tensor:
    """Return (B, C, H, W) pooled."""
    return avg_pool2d(x, list(sizes[:2]), list(sizes[2:4]), list(sizes[4:]), ceil_mode, count_include_pad)


@average_pool.register_vmap  # type: ignore[untyped-decorator]
def _average_pool_stacked(info: Any, dims: tuple[int | None, ...], x: Tensor, *sizes: Any) -> tuple[Tensor, int]:
    return stacked_average_pool(_in_front(x, dims[0], info.batch_size), *sizes), 0
