"""ImageNet results of RepLKNet beside Swin: accuracy, size, and speed.

Parameters are counted with every BN folded, multiply-adds on the merged net. `--timing` times the deployed
nets beside timm's Swin-B and Swin-L on the device at hand (strict float32, on a GPU bf16 too, and both by
torch.compile; batch 64 on a GPU, 4 on a CPU; the faster of both layouts); the paper's are a 2080 Ti's, FP32, batch 64.
The Swin rows are baselines: counted and timed here, not trained.

Cost: `python -m ablations.run table6`; at `small` not measured yet.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch

from ablations.measures import forms_here, in_all_forms
from ablations.spec import MACS, PARAMETERS, THROUGHPUT, TOP1, Number, Row, ablation, least
from replk_lightning import recipes
from replk_lightning.measure.latency import Job, throughput

SWIN_B_224, SWIN_B_384 = "swin_base_patch4_window7_224", "swin_base_patch4_window12_384"
SWIN_L_224, SWIN_L_384 = "swin_large_patch4_window7_224", "swin_large_patch4_window12_384"


def batch_size() -> int:
    """The paper's 64 images on a GPU, 4 on a CPU."""
    return 64 if torch.cuda.is_available() else 4


def time_nets(rows: Sequence[Row]) -> Mapping[str, Mapping[str, float]]:
    """Images/s of every net at the row's resolution; rows of the same net share one measurement."""
    jobs: dict[str, Job] = {row.key: (row.model, table6.resolution_of(row), row.options) for row in rows}
    distinct = {str(job): job for job in jobs.values()}
    rates = {metric: throughput(distinct, batch_size(), **form) for metric, form in forms_here(THROUGHPUT).items()}
    return {key: {metric: of[str(job)] for metric, of in rates.items()} for key, job in jobs.items()}


METRICS = (TOP1, PARAMETERS, MACS, *in_all_forms(THROUGHPUT))


@ablation(table=6, recipe=recipes.replknet_300ep, metrics=METRICS, timing=time_nets)
def table6() -> Iterator[Row]:
    """RepLKNet-31B, 31L and XL, each beside the Swin the paper sets it against."""
    pre22k, ft224, ft384 = " (ImageNet-22K)", recipes.replknet_22k_finetune_224, recipes.replknet_22k_finetune_384
    ours, swin = "RepLKNet-31B", "Swin-B"
    yield Row("replknet31b-224", "replknet_31b", label=f"{ours}, 224²")
    yield Row("swin-b-224", SWIN_B_224, label=f"{swin}, 224²", trained=False)
    yield Row("replknet31b-384", "replknet_31b", label=f"{ours}, 384²", recipe=recipes.replknet_finetune_384)
    yield Row("swin-b-384", SWIN_B_384, label=f"{swin}, 384²", resolution=384, trained=False)
    yield Row("replknet31b-22k-224", "replknet_31b", label=f"{ours}, 224²{pre22k}", recipe=ft224)
    yield Row("swin-b-22k-224", SWIN_B_224, label=f"{swin}, 224²{pre22k}", trained=False)
    yield Row("replknet31b-22k-384", "replknet_31b", label=f"{ours}, 384²{pre22k}", recipe=ft384)
    yield Row("swin-b-22k-384", SWIN_B_384, label=f"{swin}, 384²{pre22k}", resolution=384, trained=False)
    yield Row("replknet31l-22k-384", "replknet_31l", label=f"RepLKNet-31L, 384²{pre22k}", recipe=ft384)
    yield Row("swin-l-22k-384", SWIN_L_384, label=f"Swin-L, 384²{pre22k}", resolution=384, trained=False)
    yield Row("replknetxl-320", "replknet_xl", label="RepLKNet-XL, 320² (extra data)", recipe=recipes.xl_finetune_320)


def _over_swin(throughput: dict[str, float], side: str) -> float:
    return throughput[f"replknet31b-{side}"] / throughput[f"swin-b-{side}"]


@table6.claim(
    "RepLKNet-31B is faster than Swin-B at 224² and at 384²",
    Number("images/s over Swin-B's at 384²", lambda throughput: _over_swin(throughput, "384"), 2),
    unit="times",
)
def faster_than_swin(throughput: dict[str, float]) -> float:
    """Sec. 4.3."""
    return least(_over_swin(throughput, "224"), _over_swin(throughput, "384")) - 1


@table6.claim("RepLKNet-31B's lead over Swin-B in speed is larger at 384² than at 224²", unit="times")
def lead_grows_with_resolution(throughput: dict[str, float]) -> float:
    """Table 6: 31 % and 43 %."""
    return _over_swin(throughput, "384") - _over_swin(throughput, "224")


@table6.claim("RepLKNet-XL needs more multiply-adds than Swin-L and is faster all the same", unit="times")
def xl_is_faster_than_swin_l(macs: dict[str, float], throughput: dict[str, float]) -> float:
    """Sec. 4.3."""
    return least(*(each["replknetxl-320"] / each["swin-l-22k-384"] - 1 for each in (throughput, macs)))
