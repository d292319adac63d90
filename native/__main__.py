"""``python -m native check | bench | plan | report | gpu | shim``: prove the operator, time it, lend it old names."""

import importlib
import subprocess
import sys

COMMANDS = {
    "check": "compare every usable backend with the reference",
    "bench": "time the operator beside torch's own convolution; with --models, whole networks; with --nets, timm's; "
    "with --pair, two filters on one input",
    "plan": "list what was measured fastest on this CPU and is kept; --check times it again, --remeasure replaces it",
    "report": "compile the CUDA kernels and report registers, spills and instruction mix",
    "gpu": "ask an NVIDIA GPU all that it is to answer, the most telling first; --dry-run prints the plan anywhere",
    "shim": "print or write the files that answer for RepLKNet's CUDA extension, depthwise_conv2d_implicit_gemm",
}


def main(arguments: list[str]) -> int:
    """Run the command named first with the rest of the arguments; the exit status."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m native COMMAND [OPTIONS]", *(f"  {n:8}{d}" for n, d in COMMANDS.items()), sep="\n")
        return 0 if arguments else 2
    if arguments[0] not in COMMANDS:
        print(f"native: there is no command {arguments[0]!r}; choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        return 2
    if arguments[:2] == ["bench", "--models"]:  # whole networks are the library's business; this package knows none
        return subprocess.call([sys.executable, "-m", "replk_lightning.measure.latency", *arguments[2:]])
    name, *rest = arguments
    name = {"plan": "kept_plans", "gpu": "gpu_session"}.get(name, name)  # the file's
    if arguments[:2] in (["bench", "--nets"], ["bench", "--pair"]):
        name, *rest = f"bench_{arguments[1][2:]}", *arguments[2:]
    try:
        module = importlib.import_module(f"native.{name}")
    except ModuleNotFoundError as error:
        print(f"python -m native {name} needs a module that is not installed: {error.name}", file=sys.stderr)
        return 1
    return int(module.main(rest))


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr] # a file or pipe on Windows may lack × and ±
    sys.exit(main(sys.argv[1:]))
