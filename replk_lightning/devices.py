"""Where to compute: this process's own device, or one that a user named."""

import os

import torch

from replk_lightning.models import ModelError


def default_device() -> torch.device:
    """This process's GPU, or the CPU."""
    return torch.device(f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu")


def device_called(name: str) -> torch.device:
    """The device, if it can be used; raises ModelError."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(f"the device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device
