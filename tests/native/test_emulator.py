"""The emulator by itself: each instruction against a matrix product, each kind of fault found."""

import sys

import pytest
import torch

import native
from native import emulator, gpu_plans
from native.accuracy import round_to_tf32

pytestmark = pytest.mark.skipif(emulator.why_not_here() is not None, reason="not Linux, or no C++ compiler")

HALF = torch.float16


def run(
    body: str, x: torch.Tensor, size: int, dtype=torch.float32, shared: int = 4096, element: str = "ELEMENT_F16", n=0
):
    """One warp runs `body` (x: const Element*, y: float*, n: int); its output of `size` and the report."""
    y = torch.full((size,), torch.nan, dtype=dtype)
    kind = "float" if dtype == torch.float32 else "Element"
    source = f"#include <ptx.cuh>\nKERNEL(32, 1)\nprobe(const Element* x, {kind}* y, int n) {{\n{body}\n}}\n"
    step = gpu_plans.Launch("probe.cu", (), element, (1, 1, 1), 32, shared, ("x", "y", n))
    report = emulator.launch(step, {"x": x, "y": y}, "y", source)
    return y, report


def fragments(matrix: torch.Tensor, registers: list[tuple[int, int]], by_column: bool) -> torch.Tensor:
    """PTX ISA, "Matrix Fragments for mma.m16n8k8/k16": lane l's register at (row, column) offset holds two neighbours.

    A: row l / 4, columns 2 (l % 4) + {0, 1}; B (by_column): rows 2 (l % 4) + {0, 1}, column l / 4.
    """
    out = torch.empty(32, len(registers), 2, dtype=matrix.dtype)
    for lane in range(32):
        for r, (row, column) in enumerate(registers):
            for e in range(2):
                i, j = (2 * (lane % 4) + e, lane // 4) if by_column else (lane // 4, 2 * (lane % 4) + e)
                out[lane, r, e] = matrix[row + i, column + j]
    return out


@pytest.mark.parametrize(("element", "dtype"), [("ELEMENT_F16", torch.float16), ("ELEMENT_BF16", torch.bfloat16)])
@pytest.mark.parametrize("k", [8, 16])
def test_mma_is_a_matrix_product(k, element, dtype):
    # Every entry different, products exact: a permuted or transposed fragment changes the result.
    a = (torch.arange(16 * k).reshape(16, k) % 61 - 30).to(dtype)
    b = (torch.arange(k * 8).reshape(k, 8) * 7 % 53 - 26).to(dtype)
    a_registers = [(0, 0), (8, 0), (0, 8), (8, 8)][: k // 4]
    b_registers = [(0, 0), (8, 0)][: k // 8]
    x = torch.cat([fragments(a, a_registers, False).flatten(), fragments(b, b_registers, True).flatten()])
    loads = ", ".join(f"a[{i}]" for i in range(k // 4)) + ", " + ", ".join(f"b[{i}]" for i in range(k // 8))
    body = f"""
        const u32* q = reinterpret_cast<const u32*>(x);
        u32 a[{k // 4}], b[{k // 8}];
        float c[4] = {{1, 2, 3, 4}};
        for (int i = 0; i < {k // 4}; ++i) a[i] = load_global(q + thread_index() * {k // 4} + i);
        for (int i = 0; i < {k // 8}; ++i) b[i] = load_global(q + {32 * (k // 4)} + thread_index() * {k // 8} + i);
        mma_{"one" if k == 8 else "two"}(c, {loads});
        for (int i = 0; i < 4; ++i) store_global(y + thread_index() * 4 + i, c[i] - (1 + i));
    """
    y, report = run(body, x, 128, element=element)
    product = torch.empty(16, 8)
    for lane in range(32):  # "accumulator": rows l / 4 and l / 4 + 8, columns 2 (l % 4) + {0, 1}
        product[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2] = y[4 * lane : 4 * lane + 2]
        product[lane // 4 + 8, 2 * (lane % 4) : 2 * (lane % 4) + 2] = y[4 * lane + 2 : 4 * lane + 4]
    assert torch.equal(product, a.float() @ b.float())
    assert report.faults == ()
    assert report.mma == 16 * 8 * k


@pytest.mark.parametrize("k", [4, 8])
def test_mma_of_tf32_is_a_matrix_product(k):
    # PTX ISA, "Matrix Fragments for mma.m16n8k4" and "... m16n8k8" with .tf32: a lane holds A's (l / 4 + {0, 8},
    # l % 4 + {0, 4}), rows first, and B's (l % 4 + {0, 4}, l / 4).
    a = (torch.arange(16 * k).reshape(16, k) * 5 % 127 - 60).float()
    b = (torch.arange(k * 8).reshape(k, 8) * 7 % 53 - 26).float()
    places = [(0, 0), (8, 0), (0, 4), (8, 4)][: k // 2]
    a_lanes = torch.tensor([[a[lane // 4 + i, lane % 4 + j] for i, j in places] for lane in range(32)])
    b_lanes = torch.tensor([[b[lane % 4 + i, lane // 4] for i in (0, 4)[: k // 4]] for lane in range(32)])
    # The tensor core reads 19 bits: what is below does not count.
    below = torch.randint(0, 1 << 13, (32, k // 2 + k // 4), dtype=torch.int32)
    x = (torch.cat([a_lanes, b_lanes], 1).view(torch.int32) | below).view(torch.float32)
    loads = ", ".join(f"load_global(q + {i})" for i in range(k // 2 + k // 4))
    body = f"""
        const u32* q = reinterpret_cast<const u32*>(x) + thread_index() * {k // 2 + k // 4};
        float c[4] = {{1, 2, 3, 4}};
        mma_{"one" if k == 4 else "two"}(c, {loads});
        for (int i = 0; i < 4; ++i) store_global(y + thread_index() * 4 + i, c[i] - (1 + i));
    """
    y, report = run(body, x.flatten(), 128, element="ELEMENT_TF32")
    product = torch.empty(16, 8)
    for lane in range(32):
        product[lane // 4, 2 * (lane % 4) : 2 * (lane % 4) + 2] = y[4 * lane : 4 * lane + 2]
        product[lane // 4 + 8, 2 * (lane % 4) : 2 * (lane % 4) + 2] = y[4 * lane + 2 : 4 * lane + 4]
    assert torch.equal(product, a @ b)
    assert report.faults == ()
    assert report.mma == 16 * 8 * k


def test_rounding_to_tf32_is_to_nearest_ties_away():
    cases = {
        0x3F801000: 0x3F802000, 0xBF801000: 0xBF802000, 0x3F803000: 0x3F804000, 0x3F800FFF: 0x3F800000,  # ties, below
        0x7F7FFFFF: 0x7F800000, 0x7F800000: 0x7F800000, 0x80000000: 0x80000000, 0x00001000: 0x00002000,  # the edges
    }  # fmt: skip
    bits = [*cases, *torch.randn(24).view(torch.int32).tolist()]
    x = torch.tensor([b - (1 << 32) if b >= 1 << 31 else b for b in bits], dtype=torch.int32).view(torch.float32)
    body = "u32 r = round_to_tf32(load_global(reinterpret_cast<const u32*>(x) + thread_index()));"
    body += "store_global(reinterpret_cast<u32*>(y) + thread_index(), r);"
    y, report = run(body, x, 32, element="ELEMENT_TF32")
    found = [b % (1 << 32) for b in y.view(torch.int32).tolist()]
    assert found[:8] == [*cases.values()]
    assert torch.equal(y[8:], round_to_tf32(x[8:]))
    assert report.faults == ()


def test_conflicts_are_counted_where_they_are():
    body = """
        store_shared(thread_index() * 4, 0.f);
        store_shared(4096 + thread_index() * 8, 0.f);
        block_barrier();
        float v = 0.f;
        if (thread_index() >= 8 && thread_index() < 24) v = load_shared<float4>(thread_index() * 16 % 128).x;
        store_global(y + thread_index(), v);"""
    _, report = run(body, torch.zeros(32, dtype=HALF), 32, shared=8192)
    by_line = [(wavefronts, conflicts) for _, _, wavefronts, conflicts in report.lines]
    # Stride 4 bytes: one pass; stride 8: two; half of the lanes, 16 bytes each: two quarters, one pass each.
    assert by_line == [(1, 0), (2, 1), (2, 0)]
    assert (report.shared_wavefronts, report.shared_conflicts) == (5, 1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [2, 4])
def test_load_matrices_is_ldmatrix(count, transposed):
    x = torch.arange(64 * count, dtype=torch.float32).to(HALF)  # matrix m, row i: 8 elements at 64 m + 8 i
    body = f"""
        for (int i = thread_index(); i < {64 * count}; i += 32) store_shared(2 * i, load_global(x + i));
        block_barrier();
        u32 r[{count}];
        load_matrices<{count}, {str(transposed).lower()}>(r, (thread_index() % {8 * count}) * 16);
        for (int m = 0; m < {count}; ++m) {{
            store_global(y + (thread_index() * {count} + m) * 2, to_float(r[m] & 0xffff));
            store_global(y + (thread_index() * {count} + m) * 2 + 1, to_float(r[m] >> 16));
        }}
    """
    y, report = run(body, x, 64 * count)
    assert report.faults == ()
    assert report.shared_conflicts == 0
    matrices = x.float().reshape(count, 8, 8)
    for lane, m, e in ((lane, m, e) for lane in range(32) for m in range(count) for e in range(2)):
        row, column = lane // 4, 2 * (lane % 4) + e
        expected = matrices[m, column, row] if transposed else matrices[m, row, column]
        assert y[(lane * count + m) * 2 + e] == expected


def test_shuffle_and_rounding():
    x = torch.tensor([0.0, 1.0, -2.5, 65504.0, 6e-8, 1e-5, 0.333, -0.1]).to(HALF).repeat(4)
    body = "store_global(y + thread_index(), to_float(shuffle_xor(load_global(x + thread_index()), 5)));"
    y, report = run(body, x, 32)
    assert torch.equal(y, x.float()[torch.arange(32) ^ 5])
    edges = torch.tensor([65519.0, 65520.0, 0.0, 2.0**-25])
    values = torch.cat([torch.randn(28) * torch.tensor([1e-6, 1e-3, 1.0, 1e4]).repeat(7), edges])
    for element, dtype in (("ELEMENT_F16", torch.float16), ("ELEMENT_BF16", torch.bfloat16)):
        body = """const float* f = reinterpret_cast<const float*>(x);
            store_global(y + thread_index(), from_float(load_global(f + thread_index())));"""
        y, report = run(body, values, 32, dtype, element=element)
        assert torch.equal(y, values.to(dtype)), element
    assert report.faults == ()


FAULTS = {
    "out of bounds": "store_global(y + thread_index() + 1, 0.f);",
    "unwritten": "store_global(y + thread_index(), load_shared<float>(4 * thread_index()));",
    "race": "store_shared(4 * thread_index(), 1.f);"
    "store_global(y + thread_index(), load_shared<float>(4 * (31 - thread_index())));",
    "misaligned": "store_shared(4 * thread_index(), 1.f); block_barrier();"
    "store_global(y + thread_index(), thread_index() ? 0.f : load_shared<float4>(4).x);",
    "diverged": "if (thread_index() % 2) block_barrier(); store_global(y + thread_index(), 0.f);",
    "read-only": "store_global(const_cast<Element*>(x), (Element)0); store_global(y + thread_index(), 0.f);",
    "never written": "if (thread_index()) store_global(y + thread_index(), 0.f);",
}


RACES = {
    "two writers of one output": "store_global(y, 1.f); store_global(y + thread_index(), 0.f);",
    "an asynchronous copy read before it is waited for": "copy_async<16>(16 * thread_index(), x);"
    "copy_commit(); store_global(y + thread_index(), load_shared<float>(16 * thread_index())); copy_wait<0>();",
    "an asynchronous copy read by another thread without a barrier": "copy_async<16>(16 * thread_index(), x);"
    "copy_commit(); copy_wait<0>(); store_global(y + thread_index(), load_shared<float>(16 * (31 - thread_index())));",
}


# All in one kernel, which is compiled once.
FAULTY = "\n".join(f"if (n == {n}) {{ {body} return; }}" for n, body in enumerate((*FAULTS.values(), *RACES.values())))


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_of_every_kind_is_found(kind):
    _, report = run(FAULTY, torch.zeros(32, dtype=HALF), 32, n=[*FAULTS].index(kind))
    assert kind in dict(report.faults), report


@pytest.mark.parametrize("kind", RACES)
def test_races_in_global_memory_and_copies_are_found(kind):
    _, report = run(FAULTY, torch.zeros(32, dtype=HALF), 32, n=len(FAULTS) + [*RACES].index(kind))
    assert "race" in dict(report.faults), report


def test_what_is_right_has_no_fault():
    y, report = run(FAULTY + "store_global(y + thread_index(), 1.f);", torch.zeros(32, dtype=HALF), 32, n=-1)
    assert report.faults == ()
    assert torch.equal(y, torch.ones(32))


MUTANTS = (  # kernel, text in it, what it becomes: each breaks a kernel in one place
    ("toeplitz_forward.cu", "    copy_wait<0>();\n    block_barrier();", "    copy_wait<0>();"),
    ("toeplitz_forward.cu", "    copy_wait<0>();\n", ""),
    ("toeplitz_forward.cu", "            zero_shared<VECTOR>(to);", "            ;"),
    ("toeplitz_forward.cu", "(u32)r < (u32)map.rows &&", ""),
    ("toeplitz_forward.cu", "n < N && i < out.rows", "n < N"),
    ("toeplitz_forward.cu", "int u = r - (i0 + k * IM) + F::TOP;", "int u = r - (i0 + k * IM);"),
    ("direct_forward.cu", "    copy_wait<0>();\n    block_barrier();", "    copy_wait<0>();"),
    ("direct_forward.cu", "if (j < columns) store", "store"),
)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m[0] + ": " + m[1].strip()[:24])
def test_a_mutant_of_a_kernel_is_found(mutant):
    name, text, other = mutant
    dtype = HALF if name.startswith("toeplitz") else torch.float32
    p = gpu_plans.problem((1, 2, 6, 12), dtype, (5, 5), (1, 1), (2, 2), (1, 1))
    step = gpu_plans.forward(p, False).launches[0]
    assert step.source == name
    source = (emulator.KERNELS / name).read_text()
    assert text in source
    x, w = torch.randn(1, 2, 6, 12).to(dtype), torch.randn(2, 1, 5, 5).to(dtype)
    right, wrong = (torch.full_like(x, torch.nan) for _ in "rw")
    assert emulator.launch(step, {"x": x, "w": w, "y": right}, "y").faults == ()
    report = emulator.launch(step, {"x": x, "w": w, "y": wrong}, "y", source.replace(text, other))
    assert report.faults or not torch.equal(right, wrong)


def test_elsewhere_than_on_linux_it_says_so(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert "this is darwin: name another backend" in native.why_not("emulated")
