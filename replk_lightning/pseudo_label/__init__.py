"""Soft labels written offline by teachers, for images that no one has labelled (Appendix A)."""

from replk_lightning.pseudo_label.labelling import HumanLabels, PseudoLabelError, Summary, label
from replk_lightning.pseudo_label.teachers import Teacher, load_teacher

__all__ = ["HumanLabels", "PseudoLabelError", "Summary", "Teacher", "label", "load_teacher"]
