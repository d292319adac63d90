"""Functions for the CPU at hand, under construction in LLVM's intermediate representation, and compiled."""

import contextlib
import ctypes
import functools
import platform
from collections.abc import Callable, Iterator
from typing import TypeAlias

from llvmlite import binding, ir

Integer: TypeAlias = ir.Value | int
Bounds = tuple[ir.Value, ir.Value]

I64, FLOAT, POINTER = ir.IntType(64), ir.FloatType(), ir.PointerType()
GEOMETRY = (  # the integers that every generated function takes, in this order
    *("images", "channels", "height", "width", "out_height", "out_width"),
    *("taps_high", "taps_wide", "pad_high", "pad_wide", "first_tap", "tap_step"),
)


def _target_machine() -> binding.TargetMachine:
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple()
    return target.create_target_machine(binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten(), opt=3)


@functools.cache
def features() -> dict[str, bool]:
    """The host's instruction sets, by LLVM's names."""
    return dict(binding.get_host_cpu_features())


@functools.cache
def lanes() -> int:
    """Floats in a vector of this processor; 4 are NEON's too, and where ARM's SVE has longer ones they stay unused."""
    return 16 if features().get("avx512f") else 8 if features().get("avx2") and features().get("fma") else 4


def registers() -> int:
    """Vector registers of this processor."""
    return 32 if features().get("avx512f") or _is_arm() else 16


def multiplies_and_adds() -> bool:
    """Whether one instruction multiplies and adds: elsewhere LLVM would call the C library for every number."""
    return _is_arm() or bool(features().get("avx512f") or features().get("fma"))


def _is_arm() -> bool:
    """Whether this is 64-bit ARM, all of which has NEON: Linux says aarch64, and on macOS LLVM names no features."""
    return platform.machine().lower() in ("aarch64", "arm64")


class Code:
    """A function under construction: integers, loops, and vectors at an offset counted in floats."""

    def __init__(self, name: str, pointers: tuple[str, ...]):
        self.vector = ir.VectorType(FLOAT, lanes())
        self.zeros = self.vector([0.0] * lanes())
        self.module = ir.Module(name)
        kinds = [POINTER] * (len(pointers) + 1) + [I64, I64]
        self.function = ir.Function(self.module, ir.FunctionType(ir.VoidType(), kinds), name)
        self.variables = ir.IRBuilder(self.function.append_basic_block("variables"))
        self.build = ir.IRBuilder(self.function.append_basic_block("body"))
        *self.pointers, geometry, self.first, self.last = self.function.args
        for pointer in self.pointers:
            pointer.add_attribute("noalias")
        addresses = [self.build.gep(geometry, [I64(i)], source_etype=I64) for i in range(len(GEOMETRY))]
        self.given = {name: self.build.load(a, typ=I64) for name, a in zip(GEOMETRY, addresses, strict=True)}

    @contextlib.contextmanager
    def loop(self, first: ir.Value, last: ir.Value) -> Iterator[ir.Value]:
        """``for i in range(first, last)``."""
        counter = self.variables.alloca(I64)
        head, body, after = (self.function.append_basic_block(name) for name in ("head", "loop", "after"))
        self.build.store(first, counter)
        self.build.branch(head)
        self.build.position_at_end(head)
        i = self.build.load(counter, typ=I64)
        self.build.cbranch(self.build.icmp_signed("<", i, last), body, after)
        self.build.position_at_end(body)
        yield i
        self.build.store(self.build.add(i, I64(1)), counter)
        self.build.branch(head)
        self.build.position_at_end(after)

    def add(self, *terms: Integer) -> ir.Value:
        """The sum of integers."""
        return functools.reduce(self.build.add, [I64(t) if isinstance(t, int) else t for t in terms])

    def sub(self, a: Integer, b: Integer) -> ir.Value:
        """a − b."""
        return self.build.sub(*(I64(t) if isinstance(t, int) else t for t in (a, b)))

    def mul(self, *factors: Integer) -> ir.Value:
        """The product of integers."""
        return functools.reduce(self.build.mul, [I64(f) if isinstance(f, int) else f for f in factors])

    def least(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The smaller integer."""
        return self.build.select(self.build.icmp_signed("<", a, b), a, b)

    def most(self, a: ir.Value, b: ir.Value) -> ir.Value:
        """The larger integer."""
        return self.build.select(self.build.icmp_signed(">", a, b), a, b)

    def divide(self, a: ir.Value, b: Integer) -> ir.Value:
        """a // b of natural numbers."""
        return self.build.udiv(a, I64(b) if isinstance(b, int) else b)

    def rest(self, a: ir.Value, b: Integer) -> ir.Value:
        """a % b of natural numbers."""
        return self.build.urem(a, I64(b) if isinstance(b, int) else b)

    def parts(self, whole: Integer, size: Integer) -> ir.Value:
        """How many parts of `size` cover `whole`."""
        return self.divide(self.add(whole, size, -1), size)

    def pointer(self, base: ir.Value, *floats: Integer) -> ir.Value:
        """The address so many floats after `base`."""
        return self.build.gep(base, [self.add(*floats)], source_etype=FLOAT)

    def load(self, pointer: ir.Value) -> ir.Value:
        """The vector at an address."""
        return self.build.load(pointer, typ=self.vector, align=4)

    def store(self, value: ir.Value, pointer: ir.Value) -> None:
        """A vector to an address."""
        self.build.store(value, pointer, align=4)

    def gather(self, source: ir.Value, target: ir.Value, count: ir.Value, step: Integer) -> None:
        """`count` vectors that lie `step` floats apart, side by side into `target`."""
        with self.loop(I64(0), count) as i:
            value = self.load(self.pointer(source, self.mul(i, step)))
            self.store(value, self.pointer(target, self.mul(i, lanes())))

    def clear(self, target: ir.Value, count: ir.Value) -> None:
        """`count` vectors of zeros."""
        with self.loop(I64(0), count) as i:
            self.store(self.zeros, self.pointer(target, self.mul(i, lanes())))

    def tile(
        self,
        start: list[list[ir.Value]],
        x: ir.Value,
        x_row: Integer,
        x_unit: Integer,
        f: ir.Value,
        f_row: Integer,
        rows: Bounds,
        columns: Bounds,
    ) -> list[list[ir.Value]]:
        """start[m][t] + Σ X[m, r, s] · F[r, s − t] over the bounds `rows` and `columns`; distances in floats."""
        kind = ir.FunctionType(self.vector, [self.vector] * 3)
        multiply_add = ir.Function(self.module, kind, f"llvm.fma.v{lanes()}f32")
        sums = [[self.variables.alloca(self.vector) for _ in row] for row in start]
        cells = [(m, t) for t in range(len(start[0])) for m in range(len(start))]
        for m, t in cells:
            self.build.store(start[m][t], sums[m][t])
        with self.loop(*rows) as r:
            x_here, f_here = self.pointer(x, self.mul(r, x_row)), self.pointer(f, self.mul(r, f_row))
            with self.loop(*columns) as s:
                at = self.mul(s, lanes())
                xs = [self.load(self.pointer(x_here, at, self.mul(m, x_unit))) for m in range(len(start))]
                fs = [self.load(self.pointer(f_here, at, -t * lanes())) for t in range(len(start[0]))]
                for m, t in cells:
                    old = self.build.load(sums[m][t], typ=self.vector)
                    self.build.store(self.build.call(multiply_add, [xs[m], fs[t], old]), sums[m][t])
        return [[self.build.load(cell, typ=self.vector) for cell in row] for row in sums]

    def optimized(self, machine: binding.TargetMachine) -> binding.ModuleRef:
        """The function, which ends here, for a machine."""
        self.build.ret_void()
        self.variables.branch(self.function.basic_blocks[1])
        module = binding.parse_assembly(str(self.module))
        passes = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options(speed_level=3))
        passes.getModulePassManager().run(module, passes)
        return module

    def compile(self) -> Callable[..., None]:
        """The function as machine code; a call holds no interpreter's lock."""
        engine = binding.create_mcjit_compiler(self.optimized(_target_machine()), _target_machine())
        engine.finalize_object()
        kinds = [ctypes.c_void_p] * (len(self.pointers) + 1) + [ctypes.c_int64] * 2
        function = ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(self.function.name))
        function.engine = engine  # type: ignore[attr-defined] # the code lives as long as its engine
        return function
