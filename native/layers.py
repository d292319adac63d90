"""The layers that are timed: the grid of Table 1 and the four stages of RepLKNet-31."""

KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)  # Table 1's columns
BATCHES = {16: 8, 32: 2, 64: 1}  # Table 1's rows, and the batch instead of its 64
STAGES = ((56, 128, 31), (28, 256, 29), (14, 512, 27), (7, 1024, 13))  # RepLKNet-31: map, channels, kernel (Sec. 4.1)


def taps_on_pixels(size: int, kernel: int) -> int:
    """Taps that fall on pixels and not on the padding, along a line of `size` outputs."""
    reach = kernel // 2
    return sum(min(size - 1, i + reach) - max(0, i - reach) + 1 for i in range(size))
