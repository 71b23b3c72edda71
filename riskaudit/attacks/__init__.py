"""Gradient-inversion attacks: an observation in, a reconstruction out. Names are those of ``--attack``."""

# Importing a file registers its attack; the order here is the order in listings.
from riskaudit.attacks.dlg import DeepLeakage  # isort: skip
from riskaudit.attacks.idlg import ImprovedDeepLeakage  # isort: skip
from riskaudit.attacks.inverting_gradients import InvertingGradients  # isort: skip
from riskaudit.attacks.gradinversion import GradInversion  # isort: skip
from riskaudit.attacks.bayes import BayesOptimal  # isort: skip
from riskaudit.attacks.analytic import Analytic  # isort: skip
from riskaudit.attacks.gauss_newton import GaussNewton  # isort: skip
from riskaudit.attacks.local import Local  # isort: skip
from riskaudit.attacks.base import ATTACKS, Attack, AttackNotApplicable, Observation, Reconstruction
from riskaudit.attacks.labels import label_counts, recover_batch_labels, recover_labels, with_labels
from riskaudit.attacks.plausibility import explains

__all__ = [
    "ATTACKS",
    "Analytic",
    "Attack",
    "AttackNotApplicable",
    "BayesOptimal",
    "DeepLeakage",
    "GaussNewton",
    "GradInversion",
    "ImprovedDeepLeakage",
    "InvertingGradients",
    "Local",
    "Observation",
    "Reconstruction",
    "explains",
    "label_counts",
    "recover_batch_labels",
    "recover_labels",
    "with_labels",
]
