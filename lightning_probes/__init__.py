"""Drop-in PyTorch Lightning callbacks that look at a training run from the inside and report to Weights & Biases."""

from importlib.metadata import PackageNotFoundError, version

from lightning_probes.callbacks.curvature.fisher_trace import FisherTrace
from lightning_probes.callbacks.curvature.sharpness import Sharpness
from lightning_probes.callbacks.curvature.training_regime import TrainingRegime
from lightning_probes.callbacks.features.attention_distance import AttentionDistance
from lightning_probes.callbacks.features.head2toe import Head2Toe
from lightning_probes.callbacks.features.head2toe_network import Head2ToeNetwork, head2toe
from lightning_probes.callbacks.features.layer_cka import LayerCKA
from lightning_probes.callbacks.features.linear_probes import LinearProbes
from lightning_probes.callbacks.flow.gradient_flow import GradientFlow
from lightning_probes.callbacks.flow.gradient_norms import GradientNorms
from lightning_probes.callbacks.flow.residual_flow import ResidualFlow
from lightning_probes.callbacks.html_report import HTMLReport
from lightning_probes.callbacks.interventions.fisher_penalty import FisherPenalty
from lightning_probes.callbacks.paths.dropout_stability import DropoutStability
from lightning_probes.callbacks.paths.init_interpolation import InitInterpolation
from lightning_probes.callbacks.paths.loss_plane import LossPlane
from lightning_probes.callbacks.paths.mode_connectivity import ModeConnectivity
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.schedules import (
    AtCheckpoints,
    AtFitEnd,
    EveryNEpochs,
    EveryNSteps,
    LogSpacedSteps,
    Schedule,
)
from lightning_probes.results import Curve, Flag, Heatmap, Result, Scalar, Surface

__all__ = [
    "AtCheckpoints",
    "AtFitEnd",
    "AttentionDistance",
    "Curve",
    "DropoutStability",
    "EveryNEpochs",
    "EveryNSteps",
    "FisherPenalty",
    "FisherTrace",
    "Flag",
    "GradientFlow",
    "GradientNorms",
    "HTMLReport",
    "Head2Toe",
    "Head2ToeNetwork",
    "Heatmap",
    "InitInterpolation",
    "LayerCKA",
    "LinearProbes",
    "LogSpacedSteps",
    "LossPlane",
    "ModeConnectivity",
    "Probe",
    "ResidualFlow",
    "Result",
    "Scalar",
    "Schedule",
    "Sharpness",
    "Surface",
    "TrainingRegime",
    "head2toe",
]

try:
    __version__ = version("lightning-probes")
except PackageNotFoundError:  # used from a path
    __version__ = "0+unknown"
