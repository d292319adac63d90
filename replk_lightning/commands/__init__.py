"""What `python -m replk_lightning` does beside Lightning's fit, validate and test; each is imported when it runs."""

from importlib import import_module

COMMANDS = {
    "predict": "replk_lightning.predict.command",
    "pseudo-label": "replk_lightning.pseudo_label.command",
    "erf": "replk_lightning.commands.erf",
    "shape-bias": "replk_lightning.commands.shape_bias",
    "complexity": "replk_lightning.commands.complexity",
    "export": "replk_lightning.commands.export",
    "timm": "replk_lightning.timm_scripts",
}
"""Name → the module whose `main` takes the arguments and gives the exit status."""


def run_command(name: str, arguments: list[str]) -> int:
    """Run a command of COMMANDS."""
    status: int = import_module(COMMANDS[name]).main(arguments)
    return status
