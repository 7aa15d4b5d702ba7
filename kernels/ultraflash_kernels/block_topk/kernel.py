"""Block selection on the device: means, softmax under the rule, budget threshold,
lists. Nothing is read back."""

# pyright: reportMissingParameterType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# Triton allows no annotation but constexpr on a kernel's parameters, and takes options
# such as num_warps beside them.

import math
from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

from ultraflash_kernels.block_lists import BlockLists, BlockRule, longest_first
from ultraflash_kernels.dispatch import on_its_device, power_of_two

__all__ = ["block_means", "choose_blocks"]

BINS: tl.constexpr = tl.constexpr(256)
"""Number of values of a digit: the threshold is found eight bits at a time."""
TILE = 2048
"""Number of shares counted at once."""
MOST_SPLITS = 16
"""Maximum number of programs that share the counting of one pool."""


@triton.jit
def rounded(x, KIND: tl.constexpr):
    """Round float32 to ``KIND`` and back; bfloat16 by bit operations, so that the
    interpreter rounds like a GPU."""
    if KIND == "bfloat16":
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
        x = tl.where(x == x, bits.to(tl.float32, bitcast=True), x)
    elif KIND == "float16":
        x = x.to(tl.float16).to(tl.float32)
    return x


@triton.jit
def means_kernel(
    x,
    out,
    heads,
    blocks,
    out_blocks,
    first,
    x_sample,
    x_head,
    x_block,
    x_token,
    T: tl.constexpr,
    D: tl.constexpr,
    BT: tl.constexpr,
    BD: tl.constexpr,
    KIND: tl.constexpr,
):
    """Average the tokens of block n of ``x [B, H, blocks, T, D]`` to block ``first`` +
    n of contiguous ``out``."""
    n = tl.program_id(0).to(tl.int64)
    row = tl.program_id(1).to(tl.int64)
    source = x + (row // heads) * x_sample + (row % heads) * x_head + n * x_block
    token = tl.arange(0, BT)  # [BT]
    col = tl.arange(0, BD)  # [BD]
    inside = (token < T)[:, None] & (col < D)[None, :]  # [BT, BD]
    tile = tl.load(
        source + token[:, None].to(tl.int64) * x_token + col[None, :],
        mask=inside,
        other=0.0,
    )
    mean = rounded(tl.sum(tile.to(tl.float32), axis=0) / T, KIND)  # [BD]
    tl.store(
        out + (row * out_blocks + first + n) * D + col,
        mean.to(out.dtype.element_ty),
        mask=col < D,
    )


@triton.jit
def allowed_keys(key, row, rule):
    """Return which of ``key [BK]`` the query block ``row`` may attend to; ``rule`` is
    the six kernel arguments from ``grid_rows`` to ``chunk``."""
    grid_rows, cols, remembered, back, ahead, chunk = rule
    spatial = grid_rows * cols
    place = row % spatial
    until = ((row // spatial + remembered) // chunk + 1) * chunk
    down = (key % spatial) // cols - place // cols
    right = key % cols - place % cols  # spatial is a multiple of cols
    near = (down >= -back) & (down <= ahead) & (right >= -back) & (right <= ahead)
    return near & (key // spatial < until)


@triton.jit
def shares_kernel(
    scores,
    shares,
    queries,
    keys,
    root,
    inverse_root,
    grid_rows,
    cols,
    remembered,
    back,
    ahead,
    chunk,
    BK: tl.constexpr,
    KIND: tl.constexpr,
    ON_GPU: tl.constexpr,
):
    """Compute the softmax of one row of contiguous ``scores [B, H, queries, keys]``
    over the allowed keys; others get 0."""
    row = tl.program_id(0)
    at = (tl.program_id(1).to(tl.int64) * queries + row) * keys
    key = tl.arange(0, BK)  # [BK]
    inside = key < keys
    score = tl.load(scores + at + key, mask=inside, other=0.0).to(tl.float32)
    # On a GPU, torch divides by a host number by multiplying with its inverse.
    score = rounded(score * inverse_root if ON_GPU else score / root, KIND)
    rule = (grid_rows, cols, remembered, back, ahead, chunk)
    allowed = allowed_keys(key, row, rule) & inside
    score = tl.where(allowed, score, -float("inf"))
    away = score - tl.max(score, axis=0)
    # tl.exp is an approximation on a GPU.
    power = libdevice.exp(away) if ON_GPU else tl.exp(away)
    share = rounded(tl.div_rn(power, tl.sum(power, axis=0)), KIND)
    tl.store(shares + at + key, share, mask=inside)


@triton.jit
def found_digits(
    histograms, pool, rank, DIGITS: tl.constexpr, PASSES: tl.constexpr, SPLITS: tl.constexpr
):
    """Return the leading ``DIGITS`` digits of the value with this rank (1 is the
    largest) and the remaining rank."""
    bins = tl.arange(0, BINS)  # [BINS]
    splits = tl.arange(0, SPLITS)  # [SPLITS]
    prefix = tl.zeros((), tl.int32)
    for digit in tl.static_range(DIGITS):
        base = histograms + ((pool * PASSES + digit) * SPLITS).to(tl.int64) * BINS
        each = tl.load(base + splits[:, None] * BINS + bins[None, :])
        counts = tl.sum(each, axis=0)  # [BINS]
        # Number of values with this digit or a larger one.
        reaching = tl.cumsum(counts, axis=0, reverse=True)
        value = tl.sum((reaching >= rank).to(tl.int32), axis=0) - 1
        rank -= tl.sum(tl.where(bins > value, counts, 0), axis=0)
        prefix = prefix * BINS + value
    return prefix, rank


@triton.jit
def histogram_kernel(
    shares,
    histograms,
    size,
    chunk,
    rank,
    DIGIT: tl.constexpr,
    PASSES: tl.constexpr,
    SPLITS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Count digit ``DIGIT`` of the shares of one chunk of a pool that have the leading
    digits found so far.

    Shares are not negative, so their bit patterns have the same order; NaN is the
    largest, as in ``topk``.
    """
    pool, split = tl.program_id(0), tl.program_id(1)
    prefix, _ = found_digits(histograms, pool, rank, DIGIT, PASSES, SPLITS)
    source = shares + pool.to(tl.int64) * size
    counts = tl.zeros([BINS], tl.int32)
    first = split * chunk
    for at in range(first, tl.minimum(first + chunk, size), TILE):
        place = at + tl.arange(0, TILE)  # [TILE]
        inside = (place < size) & (place < first + chunk)
        share = tl.load(source + place, mask=inside, other=0.0)
        bits = tl.where(share == share, share.to(tl.int32, bitcast=True), 0x7FC00000)
        if DIGIT > 0:
            inside = inside & ((bits >> (32 - 8 * DIGIT)) == prefix)
        counts += tl.histogram((bits >> (24 - 8 * DIGIT)) & 255, BINS, mask=inside)
    bins = tl.arange(0, BINS)
    base = histograms + ((pool * PASSES + DIGIT) * SPLITS + split).to(tl.int64) * BINS
    tl.store(base + bins, counts)


@triton.jit
def threshold_kernel(
    histograms, thresholds, rank, PASSES: tl.constexpr, SPLITS: tl.constexpr
):
    """Assemble a pool's threshold from its digits."""
    pool = tl.program_id(0)
    bits, _ = found_digits(histograms, pool, rank, PASSES, PASSES, SPLITS)
    bits = bits << (32 - 8 * PASSES)
    tl.store(thresholds + pool, bits.to(tl.float32, bitcast=True))


@triton.jit
def kept_keys(shares, thresholds, row, head, queries, keys, rule, BK: tl.constexpr):
    """Return all keys ``[BK]`` and a mask of those that query block ``row`` of a head
    keeps: by threshold, then for empty rows, then the diagonal."""
    spatial = rule[0] * rule[1]
    key = tl.arange(0, BK)  # [BK]
    inside = key < keys
    allowed = allowed_keys(key, row, rule) & inside
    threshold = tl.load(thresholds + head * (queries // spatial) + row // spatial)
    share = tl.load(
        shares + (head.to(tl.int64) * queries + row) * keys + key, mask=inside, other=0.0
    )
    kept = allowed & (share >= threshold)
    first = tl.min(tl.where(allowed, key, BK), axis=0)
    empty = tl.sum(kept.to(tl.int32), axis=0) == 0
    kept = kept | (empty & (key == first))
    return key, kept | ((queries == keys) & (key == row))


@triton.jit
def counts_kernel(
    shares,
    thresholds,
    counts,
    queries,
    keys,
    grid_rows,
    cols,
    remembered,
    back,
    ahead,
    chunk,
    BK: tl.constexpr,
):
    """Count the keys that one row keeps."""
    row, head = tl.program_id(0), tl.program_id(1)
    rule = (grid_rows, cols, remembered, back, ahead, chunk)
    _, kept = kept_keys(shares, thresholds, row, head, queries, keys, rule, BK)
    tl.store(counts + head * queries + row, tl.sum(kept.to(tl.int32), axis=0))


@triton.jit
def lists_kernel(
    shares,
    thresholds,
    starts,
    blocks,
    queries,
    keys,
    grid_rows,
    cols,
    remembered,
    back,
    ahead,
    chunk,
    BK: tl.constexpr,
):
    """Write the keys that one row keeps, in ascending order, to its list."""
    row, head = tl.program_id(0), tl.program_id(1)
    rule = (grid_rows, cols, remembered, back, ahead, chunk)
    key, kept = kept_keys(shares, thresholds, row, head, queries, keys, rule, BK)
    start = tl.load(starts + head * queries + row)
    tl.store(blocks + start + tl.cumsum(kept.to(tl.int32), axis=0) - 1, key, mask=kept)


@on_its_device
def block_means(parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
    """See ``op.block_means``; nothing is checked here."""
    samples, heads, _, tokens, width = parts[0].shape
    blocks = sum(part.shape[2] for part in parts)
    out = torch.empty((samples, heads, blocks, width), dtype=dtype, device=parts[0].device)

    first = 0
    for part in parts:
        part = part if part.stride(-1) == 1 else part.contiguous()
        if part.numel():
            means_kernel[(part.shape[2], samples * heads)](
                part,
                out,
                heads,
                part.shape[2],
                blocks,
                first,
                *part.stride()[:4],
                T=tokens,
                D=width,
                BT=power_of_two(tokens),
                BD=power_of_two(width),
                KIND=_kind(dtype),
                num_warps=4,
            )
        first += part.shape[2]
    return out


@on_its_device
def choose_blocks(q_mean: Tensor, k_mean: Tensor, rule: BlockRule) -> BlockLists:
    """See ``op.choose_blocks``; nothing is checked here."""
    samples, heads, queries, width = q_mean.shape
    keys, rows = k_mean.shape[2], samples * heads
    where = (rule.rows, rule.cols, rule.remembered, *rule.reach, rule.chunk)
    row_width = power_of_two(keys)
    warps = max(1, min(8, row_width // 256))

    # The matmul is torch's own, so that it rounds as in the reference.
    scores = torch.matmul(q_mean, k_mean.transpose(-1, -2))
    shares = scores
    if scores.dtype != torch.float32:
        shares = torch.empty_like(scores, dtype=torch.float32)
    root = math.sqrt(width)
    # Rounded as in torch.
    inverse_root = torch.tensor(root, dtype=torch.float32).reciprocal().item()
    shares_kernel[(queries, rows)](
        scores,
        shares,
        queries,
        keys,
        root,
        inverse_root,
        *where,
        BK=row_width,
        KIND=_kind(q_mean.dtype),
        ON_GPU=q_mean.device.type != "cpu",
        num_warps=warps,
        enable_fp_fusion=False,
    )

    thresholds = _thresholds(shares, rule, 2 if q_mean.dtype == torch.bfloat16 else 4)
    counts = torch.empty(rows * queries, dtype=torch.int32, device=q_mean.device)
    kept = (queries, keys, *where)
    counts_kernel[(queries, rows)](
        shares, thresholds, counts, *kept, BK=row_width, num_warps=warps
    )
    starts = torch.cat([counts.new_zeros(1), counts.cumsum(0, dtype=torch.int32)])
    blocks = torch.empty(rows * rule.allowed_pairs, dtype=torch.int32, device=q_mean.device)
    lists_kernel[(queries, rows)](
        shares, thresholds, starts, blocks, *kept, BK=row_width, num_warps=warps
    )
    shape = (samples, heads, queries, keys)
    return BlockLists(starts, blocks, longest_first(counts), shape)


def _thresholds(shares: Tensor, rule: BlockRule, passes: int) -> Tensor:
    """Return the smallest share within the budget of each pool, one pool per temporal
    block of a head; bits beyond ``passes`` bytes are zero."""
    pools, size = (
        shares.shape[0] * shares.shape[1] * rule.temporal,
        rule.spatial * rule.keys,
    )
    rank = min(rule.budget, size - 1) + 1
    splits = min(MOST_SPLITS, power_of_two(-(-size // TILE)))
    histograms = torch.empty(
        (pools, passes, splits, 256), dtype=torch.int32, device=shares.device
    )

    chunk = triton.cdiv(size, splits)
    for digit in range(passes):
        histogram_kernel[(pools, splits)](
            shares,
            histograms,
            size,
            chunk,
            rank,
            DIGIT=digit,
            PASSES=passes,
            SPLITS=splits,
            TILE=TILE,
            num_warps=4,
        )

    thresholds = torch.empty(pools, dtype=torch.float32, device=shares.device)
    threshold_kernel[(pools,)](
        histograms, thresholds, rank, PASSES=passes, SPLITS=splits, num_warps=4
    )
    return thresholds


def _kind(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
