"""python -m ablations.run NAME: train what is missing of one table of the paper, and print the table."""

import argparse
import sys
from pathlib import Path

from ablations.registry import listing
from ablations.runner.signals import interruptible

SCALES = "smoke: seconds, generated; small: minutes to half an hour a seed, mnist5k; paper: GPU days, imagenet-1k"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    p = argparse.ArgumentParser(prog="python -m ablations.run", description=__doc__)
    p.add_argument("name", nargs="?", help="an ablation; see --list")
    p.add_argument("--list", action="store_true", help="name every ablation and stop")
    p.add_argument("--scale", default="small", help=f"{SCALES} (default: small)")
    p.add_argument("--data", help="a data set instead of the scale's: mnist5k, imagefolder:PATH, hf:NAME, …")
    p.add_argument("--transfer-data", help="likewise for segmentation or detection: ade20k:PATH, coco:PATH, …")
    p.add_argument("--seeds", type=int, nargs="+", help="default: 3 at small (0 to 2 are committed), else 0")
    p.add_argument("--rows", nargs="+", metavar="KEY", help="only these rows of the table")
    p.add_argument("--results", type=Path, help="default: results/, or runs/smoke/ at scale smoke")
    p.add_argument(
        "--init", nargs="+", default=[], metavar="KEY=PATH", help="checkpoints that fine-tuned rows start from"
    )
    p.add_argument(
        "--from-scratch", action="store_true", help="segment or detect without pre-training, in columns of their own"
    )
    p.add_argument("--dry-run", action="store_true", help="print every run and do nothing")
    p.add_argument(
        "--timing", action="store_true", help="measure the columns that time this machine, and train nothing"
    )
    p.add_argument("--accelerator", "--device", default="auto", help="cpu, gpu, … (default: auto)")
    p.add_argument("--devices", help="how many devices a node (default: all at scale paper, else 1)")
    p.add_argument("--num-nodes", type=int, default=1)
    p.add_argument("--strategy", default="auto", help="any of Lightning's: ddp, fsdp, …")
    p.add_argument("--sync-bn", action="store_true", help="BatchNorm over the batches of all devices together")
    p.add_argument("--precision", help="any of Lightning's (default: bf16-mixed on GPUs, 32-true on CPUs)")
    return p


def main(argv: list[str] | None = None) -> int:
    """Parse and run; a wrong argument gives one sentence and 2, Ctrl-C 130, SIGTERM 143."""
    arguments = parser().parse_args(argv)
    if arguments.list:
        print(listing())
        return 0
    if not arguments.name:
        print("name an ablation, or use --list to see them.", file=sys.stderr)
        return 2
    with interruptible() as interruption:
        try:
            from ablations.commands.run import perform  # takes seconds, which --list and --help need not wait for

            return perform(arguments)
        except KeyboardInterrupt:
            print("stopped; what is finished is kept, the same command goes on from there.", file=sys.stderr)
            return interruption.status


if __name__ == "__main__":
    sys.exit(main())
