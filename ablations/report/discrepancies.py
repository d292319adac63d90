"""Where the paper, its code and our counts differ, each with the evidence: a section of the index.

Numbers are taken from the records and `paper.toml`; what is said here is what they do not say themselves.
"""

from collections.abc import Mapping
from dataclasses import dataclass

Cells = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Discrepancy:
    """One difference.

    Attributes:
        about: what differs, a few words.
        cells: (ablation, row, metric) of the numbers to print, the paper's beside ours.
        says: what follows, and why we think so; Markdown, links relative to the results' folder.
    """

    about: str
    says: str
    cells: Cells = ()


DISCREPANCIES = (
    Discrepancy(
        "Table 11's multiply-adds",
        "The parameters printed are those of replacing all 17 depthwise layers, the multiply-adds are not. No "
        "choice of layers gives them: whatever layers are replaced, 13×13 adds 160/72 = 2.2 times what 9×9 adds, and "
        "the paper's numbers add 3.2 times (61 M to 19 M). Ours are those of the nets that are trained. "
        "[Table 11](table11/table.md), [mobilenet.py](../replk_lightning/models/mobilenet.py)",
        (("table11", "k9", "macs"), ("table11", "k13", "macs"), ("table11", "k13", "parameters")),
    ),
    Discrepancy(
        "What an effective receptive field is",
        "Appendix B sums the gradient's positive part over pictures (Eq. 1 and 2); the official code takes the ReLU of "
        "the centre's features first and averages. We follow the paper; `contribution(…, relu=True)` is the code's. "
        "Which map is the final one is not said: the code's is the one before the last norm, and ours is that too; "
        "`before_norm=False` takes the one after it. "
        "[erf.py](../replk_lightning/measure/erf.py), [Table 10](table10/table.md)",
    ),
    Discrepancy(
        "ImageNet-22K's warm-up, average and least rate",
        "For 22K pre-training the paper keeps the other configurations of ImageNet-1K, whose warm-up is ten epochs; "
        "the official command warms up for five and averages no weights. For fine-tuning at 384² the paper gives the "
        "initial rate of 4·10⁻⁴ and no least one; the command ends at 3·10⁻⁴ there, and at 10⁻⁶ at 224². We follow "
        "the commands. [classify.py](../replk_lightning/recipes/classify.py)",
    ),
    Discrepancy(
        "Table 4's last stage",
        "Which layers it has is not said. We take the three of 960 channels, the only ones that read 7×7 maps, with a "
        "3×3 branch as Guideline 3 suggests. [Table 4](guideline5/table.md)",
    ),
    Discrepancy(
        "Table 2 without shortcuts",
        "MobileNetV2 has ten identity shortcuts; we remove all. The paper does not say how many it removes. "
        "[Table 2](guideline2/table.md)",
    ),
    Discrepancy(
        "Table 3's DeepLabv3+",
        "At output stride 8 the last stages are dilated. Whether 9×9 and 13×13 kernels are dilated with them is not "
        "said: 13×13 dilated by 4 would reach 49 pixels. Ours are not; an option dilates them. "
        "[Table 3](guideline3/table.md)",
    ),
    Discrepancy(
        "Table 5's parameters and multiply-adds",
        "Agree with every batch norm folded and the branches merged, of which the paper says nothing; as trained, "
        "RepLKNet-31 has 79.9 M. Its 79.3 M and 15.3 G are cut off, not rounded; the text's growths of 18.6 % and "
        "10.4 % follow from the rounded numbers. [Table 5](table5/table.md), "
        "[growths](guideline1_network/table.md)",
        (("table5", "replknet31", "parameters"), ("table5", "replknet31", "macs")),
    ),
    Discrepancy(
        "Table 7's Swin",
        "The multiply-adds are another work's and depend on how a picture is cut for windows. RepLKNet-31B's "
        "parameters are above the paper's, while the same head with ADE20K's classes agrees. "
        "[Table 7](table7/table.md)",
        (
            ("table7", "swin-b", "dense_macs"),
            ("table7", "swin-l-22k", "dense_macs"),
            ("table7", "replknet31b", "dense_parameters"),
            ("table5", "replknet31", "dense_parameters"),
        ),
    ),
    Discrepancy(
        "Table 8's auxiliary head",
        "Left out of the counts, ours and all of the paper's but, it seems, ResNet-101's: with "
        "it, ours has 85.5 M. "
        "[Table 8](table8/table.md)",
        (("table8", "resnet101", "dense_parameters"), ("table8", "replknet31b", "dense_parameters")),
    ),
    Discrepancy(
        "Table 9's Cascade Mask R-CNN",
        "The paper names no sizes. Those of the official settings, counted with 1,000 proposals to every box head and "
        "100 to every mask head, agree. [Table 9](table9/table.md)",
        (("table9", "replknet31b", "dense_macs"), ("table9", "replknetxl", "dense_macs")),
    ),
)


def describe(one: Discrepancy, paper: Mapping[str, float], ours: Mapping[str, float]) -> str:
    """A list item; `paper` and `ours` hold the values of the cells by their name."""
    numbers = [f"{name}: paper {paper[name]:g}, ours {ours[name]:.4g}" for name in paper if name in ours]
    return f"- **{one.about}**" + (f" ({'; '.join(numbers)})" if numbers else "") + f". {one.says}"
