"""Semi-supervised training with soft pseudo labels: how RepLKNet-XL was pre-trained.

The paper pre-trains on 38 M labelled and 35 M unlabelled images, with "soft pseudo labels which are offline generated
[…] wherever human annotations are unavailable", and without re-parameterization, which "only brings less than 0.1%
performance gain on such a large-scale dataset"; it prints no further number. Here the labels of a tenth of the
training images are kept, 1,200 scenes at `small`. The teacher is the first row's net, trained with the same
seed: its labels are written by the code of `python -m replk_lightning pseudo-label`. All rows take the same
number of steps, so the tenth is seen ten times as often.

RepLKNet-XL has no small kernels; with re-parameterization it gets a 5×5 branch beside every large one. At `small` it
has five blocks and a sixteenth of its width; its learning rate is RepLKNet-3's (ablations/scales.py).

Cost: `python -m ablations.run appendix_a`, about 5 minutes of training a row and seed at `small` on one thread of an
AMD EPYC with AVX512.
"""

from collections.abc import Iterator

from ablations.spec import TOP1, Metric, Number, Row, Supervision, ablation
from replk_lightning.recipes import xl_finetune_320, xl_semi_supervised

XL = "replknet_xl"
PSEUDO = Metric("pseudo_top1", "pseudo labels that are right (%)")
TENTH, TAUGHT, ALL = Supervision(0.1), Supervision(0.1, teacher="tenth"), Supervision()


@ablation(appendix="A", recipe=xl_semi_supervised, metrics=(TOP1, PSEUDO))
def appendix_a() -> Iterator[Row]:
    """One net under three supervisions, and with re-parameterization under the first and the last."""
    yield Row("tenth", XL, label="10 % of the labels", supervision=TENTH)
    yield Row("pseudo", XL, label="10 %, soft pseudo labels for the rest", supervision=TAUGHT)
    yield Row("all", XL, label="all labels", supervision=ALL)
    yield Row("tenth-reparam", XL, label="10 % of the labels, 5×5 re-param", supervision=TENTH, small_kernel=5)
    yield Row("all-reparam", XL, label="all labels, 5×5 re-param", supervision=ALL, small_kernel=5)
    yield Row("finetuned", XL, label="fine-tuned at 320² (paper scale)", recipe=xl_finetune_320, published=True)


Accuracies = dict[str, float]


@appendix_a.claim(
    "soft pseudo labels for images without labels improve on the labelled images alone",
    Number("top-1 that they add to a tenth of the labels (points)", lambda top1: top1["pseudo"] - top1["tenth"], 2),
)
def pseudo_labels_help(top1: Accuracies) -> float:
    """Appendix A: what the unlabelled half of the data is used for."""
    return top1["pseudo"] - top1["tenth"]


@appendix_a.claim("people's labels for the same images are better still")
def labels_help_more(top1: Accuracies) -> float:
    """Appendix A: pseudo labels only "wherever human annotations are unavailable"."""
    return top1["all"] - top1["pseudo"]


@appendix_a.claim("re-parameterization brings less with all labels than with a tenth of them")
def reparam_matters_less_with_more_data(top1: Accuracies) -> float:
    """Remark 3 and Appendix A: it "becomes less important as the data become bigger"."""
    return (top1["tenth-reparam"] - top1["tenth"]) - (top1["all-reparam"] - top1["all"])


@appendix_a.claim("re-parameterization helps with a tenth of the labels")
def reparam_helps_on_small_data(top1: Accuracies) -> float:
    """Remark 3: a locality prior makes a net "easier to optimize on small dataset"."""
    return top1["tenth-reparam"] - top1["tenth"]
