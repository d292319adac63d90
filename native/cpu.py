"""The plan for CPUs (for the moment: stock)."""

from native.stock import forward, grad_input, grad_weight, why_not

__all__ = ["forward", "grad_input", "grad_weight", "why_not"]
