"""What a plan is about (a problem, a GPU) and what it is made of (launches)."""

from dataclasses import dataclass

import torch

from native.geometry import Pair, output_size

BLOCK = 16  # bytes of a pixel of channels_last that a block of threads takes
ELEMENTS = {torch.float16: "ELEMENT_F16", torch.bfloat16: "ELEMENT_BF16", torch.float32: "ELEMENT_F32"}


@dataclass(frozen=True)
class Problem:
    """One depthwise convolution: x (batch, channels, height, width), filters (kh, kw), y (batch, channels, *output)."""

    dtype: torch.dtype
    batch: int
    channels: int
    height: int
    width: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    tf32: bool = False  # whether fp32 may be rounded to tf32 for the tensor core
    last: bool = False  # whether x and y (or dy) are channels_last
    activation: str | None = None  # of y
    small: Pair | None = None  # of a pair: a smaller filter's rows and columns, centred in the other, with its own y

    @property
    def number(self) -> str:
        """The element type's name: torch's, or tf32."""
        return "tf32" if self.tf32 else str(self.dtype).removeprefix("torch.")

    @property
    def element(self) -> str:
        """The macro that names the element type to the multiply-add kernels."""
        return ELEMENTS[self.dtype]

    @property
    def block_channels(self) -> int:
        """Channels that a block of threads takes."""
        return BLOCK // self.dtype.itemsize if self.last else 1

    @property
    def output(self) -> Pair:
        """(rows, columns) of y."""
        return output_size((self.height, self.width), self.kernel, self.stride, self.padding, self.dilation)


@dataclass(frozen=True)
class Target:
    """A GPU as a plan sees it: compute capability as 10 · major + minor, shared memory of a multiprocessor in bytes."""

    capability: int = 90
    shared: int = 227 * 1024

    @property
    def reserved(self) -> int:
        """Bytes of shared memory that the driver keeps of each block."""
        return 1024 if self.capability >= 80 else 0

    @property
    def half(self) -> int:
        """The most bytes that a block may have so that two share a multiprocessor."""
        return (self.shared + self.reserved) // 2 - self.reserved

    def blocks_with(self, shared: int) -> int:
        """How many blocks of `shared` bytes a multiprocessor holds (it has the driver's part beyond `self.shared`)."""
        return (self.shared + self.reserved) // (shared + self.reserved)

    def tensor_cores(self, p: Problem) -> bool:
        """Whether a kernel on matrix instructions takes this problem."""
        number = p.dtype == torch.float16 or (self.capability >= 80 and (p.dtype == torch.bfloat16 or p.tf32))
        return number and p.stride == (1, 1) and p.dilation == (1, 1)


ANY_GPU = Target()


@dataclass(frozen=True)
class Launch:
    """One kernel launch; arguments are tensor names or C ints (a float-typed count as ``("i64", n)``)."""

    source: str
    constants: tuple[tuple[str, int], ...]
    element: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    arguments: tuple[str | int | tuple[str, int], ...]
    outputs: int = 1  # how many of the tensors it writes, the last ones

    @property
    def entry(self) -> str:
        """The kernel's name: that of its file."""
        return self.source.removesuffix(".cu")


@dataclass(frozen=True)
class Plan:
    """Launches in order; ``workspace`` is the number of floats of the tensor named "partial" between them."""

    launches: tuple[Launch, ...]
    workspace: int = 0


def up(value: int, multiple: int) -> int:
    """The smallest multiple that is not less than value."""
    return -(-value // multiple) * multiple
