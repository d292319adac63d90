"""The generated code for 64-bit ARM: its assembly, and on an emulated processor its results."""

import platform
import struct

import pytest
import torch

from native import cpu, reference

pytest.importorskip("llvmlite", reason="llvmlite has no wheel for this platform")
from llvmlite import binding

from native import cpu_codegen, cpu_ir

TARGETS = {
    "Linux": ("aarch64-unknown-linux-gnu", "neoverse-v1"),  # with SVE, which stays unused
    "macOS": ("arm64-apple-darwin", "apple-m1"),
    "Windows": ("aarch64-pc-windows-msvc", "generic"),
}
TILES = ((1, 19), (2, 10), (3, 6), (4, 5))
CODE, MEMORY, STACK, END = 0x10000, 0x1000000, 0x8000000, 0xF000
MEMSET = (  # x0: where, w1: the byte, x2: how many
    0xAA0003E3,  # mov x3, x0
    0xB4000082,  # cbz x2, the last
    0x38001461,  # strb w1, [x3], #1
    0xF1000442,  # subs x2, x2, #1
    0x54FFFFC1,  # b.ne, two back
    0xD65F03C0,  # ret
)


@pytest.fixture
def generated(monkeypatch):
    """A function that gives what `cpu_codegen` generates on an ARM of that system, in some form."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    monkeypatch.setattr(cpu_ir, "features", dict)  # as LLVM has it on macOS
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    caches = (cpu_ir.lanes, cpu_codegen._tile_shapes)
    for cache in caches:
        cache.cache_clear()

    def generate(code, tile, system, form):
        triple, processor = TARGETS[system]
        machine = binding.Target.from_triple(triple).create_target_machine(processor, "", 3, "static", "small")
        monkeypatch.setattr(cpu_ir.Code, "compile", lambda code: getattr(machine, form)(code.optimized(machine)))
        return code.__wrapped__(*tile)

    yield generate
    for cache in caches:
        cache.cache_clear()


@pytest.mark.parametrize("system", TARGETS)
@pytest.mark.parametrize("code", [cpu_codegen._forward_code, cpu_codegen._grad_weight_code])
def test_arm_keeps_its_sums_in_registers_of_four_floats(code, system, generated):
    for tile in TILES:
        lines = generated(code, tile, system, "emit_assembly").splitlines()
        steps = [line for line in lines if "fmla" in line]
        assert len(steps) >= tile[0] * tile[1]
        assert all("4s" in step for step in steps)
        assert {line.split()[1].strip("_") for line in lines if "\tbl\t" in line} <= {"memset", "bzero"}


def test_arm_has_32_registers_also_where_llvm_names_no_features(generated):
    assert (cpu_ir.registers(), cpu_ir.lanes(), cpu_ir.multiplies_and_adds()) == (32, 4, True)
    assert (4, 5) in cpu_codegen._tile_shapes()


def test_without_a_multiply_add_nothing_is_generated(monkeypatch):
    monkeypatch.setattr(cpu_ir, "features", lambda: {"sse2": True})
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    ways = cpu._ways("forward", torch.float32, 64, (14, 14), (13, 13), (1, 1), (6, 6), (1, 1))
    assert "generated" not in ways


def linked(elf):
    """The machine code in an object file, whose only need is memset, with that behind it."""
    start, size, count = struct.unpack_from("<Q", elf, 40)[0], *struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", elf, start + size * i) for i in range(count)]  # …, offset, length, …
    ((number, code),) = [(i, s) for i, s in enumerate(sections) if s[1] == 1 and s[2] & 4 and s[5]]
    text = bytearray(elf[code[4] : code[4] + code[5]])
    for needs in (s for s in sections if s[1] == 4 and s[7] == number):
        for i in range(needs[5] // 24):
            place, kind, symbol, _ = struct.unpack_from("<QIIq", elf, needs[4] + 24 * i)
            symbols = sections[needs[6]]
            name = sections[symbols[6]][4] + struct.unpack_from("<I", elf, symbols[4] + 24 * symbol)[0]
            assert elf[name : elf.index(b"\0", name)] == b"memset"
            jump = {282: 0x14000000, 283: 0x94000000}[kind]  # b and bl
            struct.pack_into("<I", text, place, jump | (code[5] - place) // 4)
    return bytes(text) + struct.pack("<6I", *MEMSET)


def run_on_arm(code, tensors, numbers, units):
    """Call a function on an emulated processor; the tensors are changed."""
    unicorn = pytest.importorskip("unicorn", reason="unicorn, which emulates ARM, is not installed")
    arm = unicorn.arm64_const
    cpu = unicorn.Uc(unicorn.UC_ARCH_ARM64, unicorn.UC_MODE_ARM)
    for address in (CODE & ~0xFFFF, MEMORY, STACK):
        cpu.mem_map(address, 1 << 22)
    cpu.mem_write(CODE, code)
    blocks = [tensor.numpy().tobytes() for tensor in tensors] + [struct.pack(f"<{len(numbers)}q", *numbers)]
    arguments, address = [], MEMORY
    for block in blocks:
        cpu.mem_write(address, block)
        arguments.append(address)
        address += len(block) + 4096  # room, so that a write past the end does not land in a neighbour
    arguments += [0, units]
    top = STACK + (1 << 21)
    for number, value in enumerate(arguments[:8]):
        cpu.reg_write(arm.UC_ARM64_REG_X0 + number, value)
    cpu.mem_write(top, struct.pack(f"<{len(arguments[8:])}q", *arguments[8:]))
    cpu.reg_write(arm.UC_ARM64_REG_SP, top)
    cpu.reg_write(arm.UC_ARM64_REG_LR, END)
    cpu.reg_write(arm.UC_ARM64_REG_CPACR_EL1, 3 << 20)  # vectors are allowed
    cpu.emu_start(CODE, END)
    for tensor, address in zip(tensors, arguments, strict=False):
        held = bytes(cpu.mem_read(address, tensor.nbytes))
        tensor.copy_(torch.frombuffer(bytearray(held), dtype=torch.float32).view_as(tensor))


@pytest.mark.parametrize("tile", [(1, 6), (2, 5), (3, 4)])
def test_an_emulated_arm_computes_the_definition(tile, generated, monkeypatch):
    n, c, h, w, kernel, padding = 3, 10, 9, 8, (7, 6), (3, 2)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, c, h, w, generator=generator)
    weight = torch.randn(c, 1, *kernel, generator=generator)
    geometry = ((1, 1), padding, (1, 1))
    exact = reference.forward(x.double(), weight.double(), None, *geometry)
    grad = torch.randn(exact.shape, generator=generator)

    def on_arm(code, units, shared, scratch, numbers):
        tensors = [*shared, *(torch.zeros(size) for size in scratch)]
        before = [tensor.clone().contiguous() for tensor in tensors]
        flat = [t.permute(0, 2, 3, 1).contiguous() if t.ndim == 4 else t for t in before]
        run_on_arm(linked(code), flat, [numbers[name] for name in cpu_ir.GEOMETRY], units)
        for tensor, result in zip(tensors, flat, strict=True):
            tensor.copy_(result.permute(0, 3, 1, 2) if tensor.ndim == 4 else result)

    monkeypatch.setattr(cpu_codegen, "_run", on_arm)
    for name in ("_forward_code", "_grad_weight_code"):
        code = getattr(cpu_codegen, name)
        monkeypatch.setattr(cpu_codegen, name, lambda *t, code=code: generated(code, t, "Linux", "emit_object"))
    monkeypatch.setattr(cpu_codegen, "_forward_tile", lambda *_: tile)
    monkeypatch.setattr(cpu_codegen, "_grad_weight_tile", lambda *_: tile)
    found = {
        "forward": (cpu_codegen.forward(x, weight, None, *geometry), exact),
        "grad_input": (
            cpu_codegen.grad_input(grad, weight, x.shape, *geometry),
            reference.grad_input(grad.double(), weight.double(), x.shape, *geometry),
        ),
        "grad_weight": (
            cpu_codegen.grad_weight(grad, x, kernel, *geometry),
            reference.grad_weight(grad.double(), x.double(), kernel, *geometry),
        ),
    }
    for function, (ours, right) in found.items():
        assert ((ours.double() - right).norm() / right.norm()).item() < 1e-6, function
