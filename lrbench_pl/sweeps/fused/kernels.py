"""Triton kernels that compute a layer of many networks at once, for the stacked engine on a GPU.

Activations are ``[replicas, batch, height, width, channels]``, contiguous: then a convolution is a matrix product
whose left side is read from neighbouring memory, and a batch norm is a reduction over rows. No kernel adds atomically,
so that equal inputs give equal bits. ``torch`` and cuDNN offer all this for one network at a time; their grouped
convolutions take two to four times as long.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Triton reads the annotations of a kernel; an argument without one is a number or a pointer at run time.
# mypy: disable-error-code="no-untyped-def,no-untyped-call,untyped-decorator"


@triton.jit
def convolution(
    x, weight, bias, out, x_row, height, width, out_height, out_width, pixels,
    C: tl.constexpr, K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, UH: tl.constexpr, UW: tl.constexpr, HAS_BIAS: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Convolve; with ``UH``, ``UW`` above 1 over an input with zeros in between, as the input's gradient needs.

    A program computes ``BM`` pixels and ``BN`` of ``K`` channels of one replica. The weight is ``[replica, KH, KW, C,
    K]``. ``x_row`` is the distance of two replicas in the input, 0 if they share it.
    """
    row = tl.program_id(1).to(tl.int64)
    pixel = tl.program_id(0) * BM + tl.arange(0, BM)
    channel = tl.program_id(2) * BN + tl.arange(0, BN)
    left = (pixel % out_width) * SW - PW
    top = (pixel // out_width) % out_height * SH - PH
    image = pixel // (out_width * out_height)
    x += row * x_row
    weight += row * (KH * KW * C * K)
    sums = tl.zeros((BM, BN), dtype=tl.float32)
    RUN: tl.constexpr = KW * C
    for kh in range(KH):
        y = top + kh
        is_inside = (pixel < pixels) & (y >= 0) & (y < height * UH) & (y % UH == 0)
        line = (image * height + y // UH) * width
        for first in range(0, RUN, BE):
            element = first + tl.arange(0, BE)
            column = left[:, None] + (element // C)[None, :]
            mask = is_inside[:, None] & (column >= 0) & (column < width * UW) & (element < RUN)[None, :]
            if UW == 1:
                place = ((line + left) * C)[:, None] + element[None, :]
            else:
                mask = mask & (column % UW == 0)
                place = (line[:, None] + column // UW) * C + (element % C)[None, :]
            inputs = tl.load(x + place, mask=mask, other=0.0)
            weights = tl.load(
                weight + (kh * RUN + element)[:, None] * K + channel[None, :],
                mask=(element < RUN)[:, None] & (channel < K)[None, :],
                other=0.0,
            )
            sums = tl.dot(inputs, weights, sums, input_precision=PRECISION)
    if HAS_BIAS:
        sums += tl.load(bias + row * K + channel, mask=channel < K, other=0.0)[None, :]
    place = out + row * pixels * K + pixel[:, None] * K + channel[None, :]
    tl.store(place, sums.to(out.dtype.element_ty), mask=(pixel < pixels)[:, None] & (channel < K)[None, :])


@triton.jit
def convolution_weight_gradient(
    x, gradient, out, bias_out, x_row, height, width, out_height, out_width, pixels, chunk,
    C: tl.constexpr, K: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, HAS_BIAS: tl.constexpr, BY_LINE: tl.constexpr,
    PRECISION: tl.constexpr, BM: tl.constexpr, BE: tl.constexpr, BN: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Sum the gradient of weights, and of the bias, over ``chunk`` pixels.

    The sums are ``[replica, chunks, KH * KW * C, K]`` and ``[replica, chunks, K]``. A program computes ``BE`` places of
    the kernel window, of which there are ``TILES`` tiles, and ``BN`` channels. With ``BY_LINE`` a tile lies in one line
    of the window: that takes less arithmetic for each place, but leaves much of a tile empty if a line has few places.
    """
    ELEMENTS: tl.constexpr = KH * KW * C
    RUN: tl.constexpr = KW * C
    part, chunk_number, row = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    tile = part % TILES
    channel = (part // TILES) * BN + tl.arange(0, BN)
    if BY_LINE:
        LINE: tl.constexpr = TILES // KH
        within = (tile % LINE) * BE + tl.arange(0, BE)
        element = (tile // LINE) * RUN + within
        is_element = within < RUN
    else:
        element = tile * BE + tl.arange(0, BE)
        within = element % RUN
        is_element = element < ELEMENTS
    # What depends on the place in the window alone stays out of the loop, whose integer arithmetic is what takes time.
    down = tl.where(is_element, element // RUN, height + KH)
    beside = (element // RUN) * (width * C) + within
    x += row * x_row
    gradient += row * pixels * K
    sums = tl.zeros((BE, BN), dtype=tl.float32)
    bias_sums = tl.zeros((BN,), dtype=tl.float32)
    begin = chunk_number * chunk
    for first in range(begin, begin + chunk, BM):
        pixel = first + tl.arange(0, BM)
        left = (pixel % out_width) * SW - PW
        top = (pixel // out_width) % out_height * SH - PH
        image = pixel // (out_width * out_height)
        if BY_LINE:
            line = top + tile // LINE
            column = left[None, :] + (within // C)[:, None]
            is_inside = (pixel < pixels) & (line >= 0) & (line < height)
            mask = is_inside[None, :] & (column >= 0) & (column < width) & is_element[:, None]
            place = (((image * height + line) * width)[None, :] + column) * C + (within % C)[:, None]
        else:
            top = tl.where(pixel < pixels, top, height + KH)
            y, column = top[None, :] + down[:, None], left[None, :] + (within // C)[:, None]
            mask = (y >= 0) & (y < height) & (column >= 0) & (column < width)
            place = (((image * height + top) * width + left) * C)[None, :] + beside[:, None]
        inputs = tl.load(x + place, mask=mask, other=0.0)
        gradients = tl.load(
            gradient + (pixel * K)[:, None] + channel[None, :],
            mask=(pixel < pixels)[:, None] & (channel < K)[None, :],
            other=0.0,
        )
        sums = tl.dot(inputs, gradients, sums, input_precision=PRECISION)
        if HAS_BIAS:
            bias_sums += tl.sum(gradients.to(tl.float32), axis=0)
    slot = row * tl.num_programs(1) + chunk_number
    place = out + (slot * ELEMENTS + element)[:, None] * K + channel[None, :]
    tl.store(place, sums, mask=is_element[:, None] & (channel < K)[None, :])
    if HAS_BIAS:
        tl.store(bias_out + slot * K + channel, bias_sums, mask=(channel < K) & (tile == 0))


@triton.jit
def moments(x, count_out, mean_out, square_out, rows, chunk, C: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """Compute count, mean and sum of squared differences of each channel over ``chunk`` rows of ``[rows, C]``.

    The results are ``[replica, chunks, C]``. Tiles are merged as by Chan et al. 1979, without cancellation.
    """
    number, replica = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BC)
    count = tl.zeros((BC,), dtype=tl.float32)
    mean = tl.zeros((BC,), dtype=tl.float32)
    square = tl.zeros((BC,), dtype=tl.float32)
    begin = number * chunk
    for first in range(begin, begin + chunk, BR):
        row = first + tl.arange(0, BR)
        mask = (row < rows)[:, None] & (channel < C)[None, :]
        values = tl.load(x + replica * rows * C + row[:, None] * C + channel[None, :], mask=mask, other=0.0)
        values = values.to(tl.float32)
        added = tl.sum(mask.to(tl.float32), axis=0)
        own = tl.sum(values, axis=0) / tl.maximum(added, 1.0)
        away = tl.where(mask, values - own[None, :], 0.0)
        total = tl.maximum(count + added, 1.0)
        shift = own - mean
        square += tl.sum(away * away, axis=0) + shift * shift * count * added / total
        mean += shift * added / total
        count += added
    place = (replica * tl.num_programs(0) + number) * C + channel
    tl.store(count_out + place, count, mask=channel < C)
    tl.store(mean_out + place, mean, mask=channel < C)
    tl.store(square_out + place, square, mask=channel < C)


@triton.jit
def normalise(
    x, residual, mean, scale, shift, out, rows,
    C: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute ``(x - mean) * scale + shift`` for each channel of each replica, add a residual, and apply ReLU."""
    replica = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BC)
    is_channel = channel < C
    place = replica * rows * C + row[:, None] * C + channel[None, :]
    mask = (row < rows)[:, None] & is_channel[None, :]
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    own = replica * C + channel
    centre = tl.load(mean + own, mask=is_channel, other=0.0)
    factor = tl.load(scale + own, mask=is_channel, other=0.0)
    offset = tl.load(shift + own, mask=is_channel, other=0.0)
    values = (values - centre[None, :]) * factor[None, :] + offset[None, :]
    if HAS_RESIDUAL:
        values += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        values = tl.where(values < 0, 0.0, values)
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
def gradient_moments(
    x, output, gradient, mean, sum_out, product_out, rows, chunk,
    C: tl.constexpr, RELU: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum ``gradient`` and ``gradient * (x - mean)`` of each channel over ``chunk`` rows, where ReLU passes."""
    number, replica = tl.program_id(0), tl.program_id(1).to(tl.int64)
    channel = tl.arange(0, BC)
    centre = tl.load(mean + replica * C + channel, mask=channel < C, other=0.0)
    sums = tl.zeros((BC,), dtype=tl.float32)
    products = tl.zeros((BC,), dtype=tl.float32)
    begin = number * chunk
    for first in range(begin, begin + chunk, BR):
        row = first + tl.arange(0, BR)
        mask = (row < rows)[:, None] & (channel < C)[None, :]
        place = replica * rows * C + row[:, None] * C + channel[None, :]
        gradients = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
        if RELU:
            passed = tl.load(output + place, mask=mask, other=0.0).to(tl.float32)
            gradients = tl.where(passed <= 0, 0.0, gradients)
        values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
        sums += tl.sum(gradients, axis=0)
        products += tl.sum(gradients * (values - centre[None, :]), axis=0)
    place = (replica * tl.num_programs(0) + number) * C + channel
    tl.store(sum_out + place, sums, mask=channel < C)
    tl.store(product_out + place, products, mask=channel < C)


@triton.jit
def normalise_gradient(
    x, output, gradient, mean, scale, slope, shift, out, residual_out, rows,
    C: tl.constexpr, HAS_RESIDUAL: tl.constexpr, RELU: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute ``gradient * scale + (x - mean) * slope + shift`` for each channel of each replica.

    With ReLU the gradient counts where it passes; with a residual that part of the gradient is written too.
    """
    replica = tl.program_id(1).to(tl.int64)
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.arange(0, BC)
    is_channel = channel < C
    place = replica * rows * C + row[:, None] * C + channel[None, :]
    mask = (row < rows)[:, None] & is_channel[None, :]
    gradients = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
    if RELU:
        passed = tl.load(output + place, mask=mask, other=0.0).to(tl.float32)
        gradients = tl.where(passed <= 0, 0.0, gradients)
    if HAS_RESIDUAL:
        tl.store(residual_out + place, gradients.to(residual_out.dtype.element_ty), mask=mask)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    own = replica * C + channel
    centre = tl.load(mean + own, mask=is_channel, other=0.0)
    factor = tl.load(scale + own, mask=is_channel, other=0.0)
    bend = tl.load(slope + own, mask=is_channel, other=0.0)
    offset = tl.load(shift + own, mask=is_channel, other=0.0)
    values = gradients * factor[None, :] + (values - centre[None, :]) * bend[None, :] + offset[None, :]
    tl.store(out + place, values.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _window_sum(x, row, is_row, channel, height, width, C: tl.constexpr, SIZE: tl.constexpr, SQUARED: tl.constexpr):
    """Return the sum of (squared) values over the window around each pixel."""
    column = row % width
    line = (row // width) % height
    HALF: tl.constexpr = SIZE // 2
    total = tl.zeros((row.shape[0], channel.shape[0]), dtype=tl.float32)
    for place in range(SIZE * SIZE):
        down = place // SIZE - HALF
        right = place % SIZE - HALF
        is_inside = (
            is_row & (line + down >= 0) & (line + down < height) & (column + right >= 0) & (column + right < width)
        )
        there = (row + down * width + right).to(tl.int64)
        values = tl.load(
            x + there[:, None] * C + channel[None, :], mask=is_inside[:, None] & (channel < C)[None, :], other=0.0
        ).to(tl.float32)
        total += values * values if SQUARED else values
    return total


@triton.jit
def response_norm(
    x, out, rows, height, width, weight, C: tl.constexpr, SIZE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr
):
    """Compute ``x / (1 + weight * sum of x ** 2 over SIZE x SIZE) ** 0.75``; rows are pixels of all replicas."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    energy = 1.0 + weight * _window_sum(x, row, row < rows, channel, height, width, C, SIZE, True)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(out + place, (values * tl.exp2(-0.75 * tl.log2(energy))).to(out.dtype.element_ty), mask=mask)


@triton.jit
def response_norm_slope(
    x, gradient, slope, rows, height, width, weight,
    C: tl.constexpr, SIZE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute ``gradient * x * (1 + weight * sum of x ** 2) ** -1.75``, which windows add up."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    energy = 1.0 + weight * _window_sum(x, row, row < rows, channel, height, width, C, SIZE, True)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    gradients = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(slope + place, gradients * values * tl.exp2(-1.75 * tl.log2(energy)), mask=mask)


@triton.jit
def response_norm_gradient(
    x, gradient, slope, out, rows, height, width, weight,
    C: tl.constexpr, SIZE: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Compute the input's gradient of :func:`response_norm` from what :func:`response_norm_slope` found."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    energy = 1.0 + weight * _window_sum(x, row, row < rows, channel, height, width, C, SIZE, True)
    around = _window_sum(slope, row, row < rows, channel, height, width, C, SIZE, False)
    values = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    gradients = tl.load(gradient + place, mask=mask, other=0.0).to(tl.float32)
    found = gradients * tl.exp2(-0.75 * tl.log2(energy)) - 1.5 * weight * values * around
    tl.store(out + place, found.to(out.dtype.element_ty), mask=mask)


@triton.jit
def max_pool(
    x, out, place_out, rows, height, width, out_height, out_width,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Find the largest value of each window, and its place in the window; rows are output pixels of all replicas."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    left = (row % out_width) * SW - PW
    top = (row // out_width) % out_height * SH - PH
    corner = ((row // (out_width * out_height) * height + top) * width + left).to(tl.int64)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    best = tl.full((BR, BC), float("-inf"), dtype=tl.float32)
    found = tl.zeros((BR, BC), dtype=tl.int32)
    for down in tl.static_range(KH):
        for right in tl.static_range(KW):
            inside = (top + down >= 0) & (top + down < height) & (left + right >= 0) & (left + right < width)
            at = (corner + (down * width + right)) * C
            value = tl.load(x + at[:, None] + channel[None, :], mask=mask & inside[:, None], other=float("-inf"))
            value = value.to(tl.float32)
            is_better = (value > best) | (value != value)
            best = tl.where(is_better, value, best)
            found = tl.where(is_better, down * KW + right, found)
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out + place, best.to(out.dtype.element_ty), mask=mask)
    tl.store(place_out + place, found.to(place_out.dtype.element_ty), mask=mask)


@triton.jit
def max_pool_gradient(
    gradient, place_in, out, rows, height, width, out_height, out_width,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum for each input pixel the gradients of the windows in which it was the largest."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    line, column = (row // width) % height + PH, row % width + PW
    image = row // (width * height) * out_height
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    total = tl.zeros((BR, BC), dtype=tl.float32)
    for i in tl.static_range((KH + SH - 1) // SH):
        for j in tl.static_range((KW + SW - 1) // SW):
            y, x = line // SH - i, column // SW - j
            down, right = line - y * SH, column - x * SW
            inside = (y >= 0) & (y < out_height) & (down < KH) & (x >= 0) & (x < out_width) & (right < KW)
            at = (((image + y) * out_width + x).to(tl.int64) * C)[:, None] + channel[None, :]
            found = tl.load(place_in + at, mask=mask & inside[:, None], other=255).to(tl.int32)
            value = tl.load(gradient + at, mask=mask & inside[:, None], other=0.0).to(tl.float32)
            total += tl.where(found == (down * KW + right)[:, None], value, 0.0)
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def _window_size(top, left, height, width, KH: tl.constexpr, KW: tl.constexpr, PH: tl.constexpr, PW: tl.constexpr,
                 PADDED: tl.constexpr):  # fmt: skip
    """Return what the sum of a window is divided by: its pixels, with or without those of the padding."""
    bottom, end = tl.minimum(top + KH, height + PH), tl.minimum(left + KW, width + PW)
    if not PADDED:
        top, left = tl.maximum(top, 0), tl.maximum(left, 0)
        bottom, end = tl.minimum(bottom, height), tl.minimum(end, width)
    return tl.maximum((bottom - top) * (end - left), 1).to(tl.float32)


@triton.jit
def average_pool(
    x, out, rows, height, width, out_height, out_width,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, PADDED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Average each window; rows are output pixels of all replicas."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    left = (row % out_width) * SW - PW
    top = (row // out_width) % out_height * SH - PH
    corner = ((row // (out_width * out_height) * height + top) * width + left).to(tl.int64)
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    total = tl.zeros((BR, BC), dtype=tl.float32)
    for down in tl.static_range(KH):
        for right in tl.static_range(KW):
            inside = (top + down >= 0) & (top + down < height) & (left + right >= 0) & (left + right < width)
            at = (corner + (down * width + right)) * C
            total += tl.load(x + at[:, None] + channel[None, :], mask=mask & inside[:, None], other=0.0).to(tl.float32)
    total /= _window_size(top, left, height, width, KH, KW, PH, PW, PADDED)[:, None]
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)


@triton.jit
def average_pool_gradient(
    gradient, out, rows, height, width, out_height, out_width,
    C: tl.constexpr, KH: tl.constexpr, KW: tl.constexpr, SH: tl.constexpr, SW: tl.constexpr,
    PH: tl.constexpr, PW: tl.constexpr, PADDED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Sum for each input pixel its part of the gradients of its windows."""
    row = tl.program_id(0) * BR + tl.arange(0, BR)
    channel = tl.program_id(1) * BC + tl.arange(0, BC)
    line, column = (row // width) % height + PH, row % width + PW
    image = row // (width * height) * out_height
    mask = (row < rows)[:, None] & (channel < C)[None, :]
    total = tl.zeros((BR, BC), dtype=tl.float32)
    for i in tl.static_range((KH + SH - 1) // SH):
        for j in tl.static_range((KW + SW - 1) // SW):
            y, x = line // SH - i, column // SW - j
            inside = (y >= 0) & (y < out_height) & (line - y * SH < KH)
            inside = inside & (x >= 0) & (x < out_width) & (column - x * SW < KW)
            at = (((image + y) * out_width + x).to(tl.int64) * C)[:, None] + channel[None, :]
            value = tl.load(gradient + at, mask=mask & inside[:, None], other=0.0).to(tl.float32)
            size = _window_size(y * SH - PH, x * SW - PW, height, width, KH, KW, PH, PW, PADDED)
            total += value / size[:, None]
    place = row.to(tl.int64)[:, None] * C + channel[None, :]
    tl.store(out + place, total.to(out.dtype.element_ty), mask=mask)
