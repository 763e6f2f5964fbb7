"""Is a map faithful? One file a metric: a plain function on arrays, and an accumulator over many pictures.

    from fgcam_onnx.metrics import deletion_insertion, DeletionInsertion

    deletion_insertion(explainer, x, e.relevance).overall                         # float64 [n]

    metric = DeletionInsertion(explainer, step=448)
    metric.update(x, e.relevance)                                                 # again and again
    metric.summary()["overall"]                                                   # mean, standard error, interval, n

``model`` is an Explainer, or any function from inputs to logits. Defaults are those of the FG-CAM paper.
"""

from __future__ import annotations

from fgcam_onnx.metrics.average_drop import AverageDrop, average_drop
from fgcam_onnx.metrics.base import Accumulator, Summary, interval, summarise
from fgcam_onnx.metrics.completeness import Completeness, completeness
from fgcam_onnx.metrics.complexity import Complexity, complexity
from fgcam_onnx.metrics.deletion_insertion import Curves, DeletionInsertion, deletion_insertion
from fgcam_onnx.metrics.infidelity import Infidelity, infidelity
from fgcam_onnx.metrics.localisation import Localisation, box_mask, localisation
from fgcam_onnx.metrics.max_sensitivity import MaxSensitivity, max_sensitivity
from fgcam_onnx.metrics.mu_fidelity import MuFidelity, mu_fidelity
from fgcam_onnx.metrics.random_logit import RandomLogit, random_logit
from fgcam_onnx.metrics.randomisation import (
    EfficientRandomisation,
    Randomisation,
    Randomised,
    efficient_randomisation,
    randomisation,
    randomised,
    weight_layers,
)
from fgcam_onnx.metrics.road import Removal, Road, imputed, road
from fgcam_onnx.metrics.scorer import Scorer
from fgcam_onnx.metrics.sensitivity_n import SensitivityN, sensitivity_n
from fgcam_onnx.metrics.similarity import Similarity, pearson, similarity, spearman, ssim
from fgcam_onnx.metrics.sparseness import Sparseness, sparseness

__all__ = [
    "Accumulator",
    "AverageDrop",
    "Completeness",
    "Complexity",
    "Curves",
    "DeletionInsertion",
    "EfficientRandomisation",
    "Infidelity",
    "Localisation",
    "MaxSensitivity",
    "MuFidelity",
    "RandomLogit",
    "Randomisation",
    "Randomised",
    "Removal",
    "Road",
    "Scorer",
    "SensitivityN",
    "Similarity",
    "Sparseness",
    "Summary",
    "average_drop",
    "box_mask",
    "completeness",
    "complexity",
    "deletion_insertion",
    "efficient_randomisation",
    "imputed",
    "infidelity",
    "interval",
    "localisation",
    "max_sensitivity",
    "mu_fidelity",
    "pearson",
    "random_logit",
    "randomisation",
    "randomised",
    "road",
    "sensitivity_n",
    "similarity",
    "sparseness",
    "spearman",
    "ssim",
    "summarise",
    "weight_layers",
]
