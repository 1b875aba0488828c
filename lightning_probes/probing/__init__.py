"""What the author of a callback imports, beside the public names of `lightning_probes`.

The names in `__all__` are the extension API: they change with a note in the changelog only. Whatever else is in the
rooms below is private, and may change from one version to the next.
"""

from lightning_probes.functional.curvature.hvp import Linearization, double_backward_kernels, gradient, hvp, linearize
from lightning_probes.functional.parameter_vector import to_dict, to_vector
from lightning_probes.metrics import MeanEstimate
from lightning_probes.probing.arguments import LossArguments, PredictionArguments, ProbeArguments, ScheduledArguments
from lightning_probes.probing.checks import check_logits, check_loss
from lightning_probes.probing.data.drawing import DataSource, DataSources, MicroBatch, ProbeSet
from lightning_probes.probing.data.stream import FreshBatches
from lightning_probes.probing.intervention import Intervention, OptimizerStep
from lightning_probes.probing.layers import by_layer, layer_keys, select_layers, watch_layers
from lightning_probes.probing.moment import Moment
from lightning_probes.probing.monitor import Monitor
from lightning_probes.probing.objective import LossFn, PredictFn
from lightning_probes.probing.price import Price
from lightning_probes.probing.probe import Probe
from lightning_probes.probing.run.announce import OnError, OnFlag
from lightning_probes.probing.run.halving import same_logits, same_mean_loss
from lightning_probes.probing.run.init_state import InitStateSource
from lightning_probes.probing.values import (
    check_choice,
    check_choices,
    check_names,
    check_number,
    check_switch,
    check_whole_number,
)
from lightning_probes.probing.view import ModelView
from lightning_probes.reporting import Curves, Extreme, HeatmapOverSteps, Heatmaps, Lines, Panel, Surfaces
from lightning_probes.reporting.readings import Reading

__all__ = [
    "Curves",
    "DataSource",
    "DataSources",
    "Extreme",
    "FreshBatches",
    "HeatmapOverSteps",
    "Heatmaps",
    "InitStateSource",
    "Intervention",
    "Linearization",
    "Lines",
    "LossArguments",
    "LossFn",
    "MeanEstimate",
    "MicroBatch",
    "ModelView",
    "Moment",
    "Monitor",
    "OnError",
    "OnFlag",
    "OptimizerStep",
    "Panel",
    "PredictFn",
    "PredictionArguments",
    "Price",
    "Probe",
    "ProbeArguments",
    "ProbeSet",
    "Reading",
    "ScheduledArguments",
    "Surfaces",
    "by_layer",
    "check_choice",
    "check_choices",
    "check_logits",
    "check_loss",
    "check_names",
    "check_number",
    "check_switch",
    "check_whole_number",
    "double_backward_kernels",
    "gradient",
    "hvp",
    "layer_keys",
    "linearize",
    "same_logits",
    "same_mean_loss",
    "select_layers",
    "to_dict",
    "to_vector",
    "watch_layers",
]
