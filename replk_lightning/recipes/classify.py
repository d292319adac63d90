"""Appendix A's classification, one function a training recipe, every field beside the line it comes from.

`paper` after a value means Appendix A (or the named section) says it; `release` means the paper is silent and the
value is the one of the authors' published training code; `here` marks the few choices that neither source makes.
"""

from replk_lightning.recipes.base import HALF, Recipe


def mobilenetv2_100ep() -> Recipe:
    """MobileNetV2 on ImageNet-1K (Sec. 3; Appendix A, first paragraph): Tables 2, 3, 4 and 11."""
    return Recipe(
        name="mobilenetv2_100ep",
        gpus=8,  # paper: "8 GPUs"
        batch_size=8 * 32,  # paper: "a batch size of 32 per GPU"
        resolution=224,  # paper: "input resolution of 224×224"
        optimizer="sgd",  # paper: "an SGD optimizer"
        momentum=0.9,  # paper: "with momentum of 0.9"
        weight_decay=4e-5,  # paper: "weight decay of 4×10^-5"
        decay_norm_and_bias=True,  # here: the paper names no exception, so none is made
        lr=0.1,  # paper: "initial value of 0.1"
        warmup_epochs=5,  # paper: "5-epoch warmup"
        epochs=100,  # paper: "cosine annealing for 100 epochs"
        dropout=0.2,  # here: MobileNetV2's own before the classifier; the paper names none
    )  # paper: "only use random cropping and left-right flipping"


def replknet_120ep() -> Recipe:
    """RepLKNet-3/7/13/25/31 on ImageNet-1K (Sec. 4.2; Appendix A, second paragraph): Table 5."""
    return Recipe(
        name="replknet_120ep",
        gpus=32,  # paper: "32 GPUs"
        batch_size=32 * 64,  # paper: "a batch size of 64 per GPU"
        optimizer="adamw",  # paper: "AdamW"
        momentum=0.9,  # paper: "with momentum of 0.9"
        weight_decay=0.05,  # paper: "weight decay of 0.05"; release: none on biases and 1-D parameters
        lr=4e-3,  # paper: "an initial value of 4×10^-3"
        min_lr=1e-6,  # release
        warmup_epochs=10,  # paper: "10-epoch warm-up"
        epochs=120,  # paper: "to train for 120 epochs"
        auto_augment="rand-m9-mstd0.5-inc1",  # paper: RandAugment "as implemented by timm"
        label_smoothing=0.1,  # paper: "label smoothing coefficient of 0.1"
        mixup=0.8,  # paper: "mixup with α=0.8"
        cutmix=1.0,  # paper: "CutMix with α=1.0"
        mixup_switch_prob=0.5,  # release
        random_erasing=0.25,  # paper: "Rand Erasing with probability of 25%"
        drop_path=0.3,  # paper: "a drop-path rate of 30%"
        interpolation="bicubic",  # release
        ema=0.9999,  # release
    )


def replknet_300ep() -> Recipe:
    """RepLKNet-31B on ImageNet-1K (Sec. 4.3; end of Appendix A's second paragraph): Table 6."""
    return replknet_120ep().with_overrides(
        name="replknet_300ep",
        epochs=300,  # paper: "the epoch number of 300"
        drop_path=0.5,  # paper: "drop-path rate of 50%"
    )


def replknet_finetune_384() -> Recipe:
    """RepLKNet-31B from 224² to 384² on ImageNet-1K (Appendix A, third paragraph): Table 6."""
    return replknet_300ep().with_overrides(
        name="replknet_finetune_384",
        starts_from="replknet_300ep",  # paper: "For finetuning the 224×224-trained RepLKNet-31B"
        resolution=384,  # paper: "with 384×384"
        gpus=32,  # paper: "32 GPUs"
        batch_size=32 * 32,  # paper: "a batch size of 32 per GPU"
        lr=4e-4,  # paper: "initial learning rate of 4×10^-4"
        warmup_epochs=1,  # paper: "1-epoch warm-up"
        epochs=30,  # paper: "30 epochs"
        ema=1 - 1e-4,  # paper: "model EMA with momentum of 10^-4"
        mixup=0.0,  # paper: "no CutMix nor mixup"
        cutmix=0.0,
        weight_decay=1e-8,  # release
        layer_decay=0.7,  # release
        drop_path=0.8,  # release
    )


def replknet_pretrain_22k() -> Recipe:
    """RepLKNet-31B and 31L on ImageNet-22K (Appendix A, fourth paragraph): rows marked ‡ of Table 6."""
    return replknet_120ep().with_overrides(
        name="replknet_pretrain_22k",
        gpus=128,  # paper: "128 GPUs"
        batch_size=128 * 32,  # paper: "a batch size of 32 per GPU"
        epochs=90,  # paper: "for 90 epochs"
        drop_path=0.1,  # paper: "a drop-path rate of 10%"
        warmup_epochs=5,  # release; paper: "The other configurations are the same as" on 1K, where they are 10
        ema=None,  # release
    )


def replknet_22k_finetune_224() -> Recipe:
    """RepLKNet-31B from ImageNet-22K to 1K at 224² (Appendix A, fifth paragraph): Table 6."""
    return replknet_finetune_384().with_overrides(
        name="replknet_22k_finetune_224",
        starts_from="replknet_pretrain_22k",
        new_head=True,
        resolution=224,  # paper: "with 224×224"
        gpus=16,  # paper: "16 GPUs"
        batch_size=16 * 32,  # paper: "a batch size of 32 per GPU"
        drop_path=0.2,  # paper: "drop-path rate of 20%"
        warmup_epochs=1,  # here: as in the fine-tuning the paper compares it with; this paragraph names none
    )


def replknet_22k_finetune_384() -> Recipe:
    """RepLKNet-31B and 31L from ImageNet-22K to 1K at 384² (Appendix A, sixth paragraph): Table 6."""
    return replknet_22k_finetune_224().with_overrides(
        name="replknet_22k_finetune_384",
        resolution=384,  # paper: "with 384×384"
        gpus=32,  # paper: "32 GPUs"
        batch_size=32 * 16,  # paper: "a batch size of 16 per GPU"
        drop_path=0.3,  # paper: "raised to 30%"
        min_lr=3e-4,  # release: at 384² only
    )


def xl_semi_supervised() -> Recipe:
    """RepLKNet-XL's pre-training (Appendix A, "RepLKNet-XL and Semi-supervised Pretraining"): Table 6's last row."""
    return replknet_120ep().with_overrides(
        name="xl_semi_supervised",
        gpus=64,  # here: the paper gives the total batch only
        batch_size=2048,  # paper: "a total batch size of 2048"
        epochs=15,  # paper: "for up to 15 epochs"
        lr=1.5e-3,  # paper: "a lower initial learning rate of 1.5×10^-3"
        warmup_epochs=1,  # here: ten of fifteen epochs cannot be meant
        mixup=0.0,  # paper: "We do not use Cut-Mix or mixup"
        cutmix=0.0,  # paper: the same words
        drop_path=0.2,  # paper: "decrease drop-path rate to 20%"
        mean=HALF,  # release
        std=HALF,  # release
    )  # paper: "Structural Re-parameterization is omitted": replknet_xl has no small kernels


def xl_finetune_320() -> Recipe:
    """RepLKNet-XL on ImageNet-1K at 320² (Appendix A, last paragraph on XL): Table 6's last row.

    The paper says "following BeiT" but for the values below; what is not below is that of the 384² fine-tuning.
    """
    return replknet_finetune_384().with_overrides(
        name="xl_finetune_320",
        starts_from="xl_semi_supervised",  # paper: Sec. 4.3, "pretrained on our private semi-supervised dataset"
        new_head=True,  # here: the heads before are those of several tasks
        resolution=320,  # paper: "input resolution of 320×320"
        epochs=30,  # paper: "for 30 epochs"
        lr=1e-4,  # paper: "a higher learning rate of 10^-4"
        layer_decay=0.4,  # paper: "stage-wise learning rate decay of 0.4"
        decay_by_stage=True,  # paper: the same words
        drop_path=0.3,  # here: that of the 384² fine-tuning of 31L
        mean=HALF,  # release
        std=HALF,  # release
    )
