"""Gradient-inversion attacks: an observation in, a reconstruction out. Names are those of ``attack``.

``base`` says what an attack is given and gives back; read it first, then ``dlg``, the shortest one. A new attack is one
file here: a frozen dataclass with ``@register``, whose fields are its settings. Attacks by descent are put together
from the parts in ``optimise``. Around them: ``matching`` (distances of releases), ``labels`` (labels read off the
release, for attacks that aren't told them), ``linear_layers`` (what enters a fully connected layer, for ``analytic``)
and ``plausibility`` (whether the noise explains what a reconstruction leaves unexplained).
"""

from importlib import import_module
from pkgutil import iter_modules

# Importing a file registers its attack; the order here is the order in listings, others follow by name.
from riskaudit.attacks.dlg import DeepLeakage  # isort: skip
from riskaudit.attacks.idlg import ImprovedDeepLeakage  # isort: skip
from riskaudit.attacks.inverting_gradients import InvertingGradients  # isort: skip
from riskaudit.attacks.gradinversion import GradInversion  # isort: skip
from riskaudit.attacks.bayes import BayesOptimal  # isort: skip
from riskaudit.attacks.analytic import Analytic  # isort: skip
from riskaudit.attacks.gauss_newton import GaussNewton  # isort: skip
from riskaudit.attacks.local import Local  # isort: skip
from riskaudit.attacks.base import ATTACKS, Attack, AttackNotApplicable, Observation, PublicTexts, Reconstruction
from riskaudit.attacks.cocktail_party import CocktailParty
from riskaudit.attacks.feature_matching import FeatureMatching
from riskaudit.attacks.imprint import Imprint
from riskaudit.attacks.kept_entries import KeptEntries
from riskaudit.attacks.labels import label_counts, recover_batch_labels, recover_labels, with_labels
from riskaudit.attacks.left_out import LayerLeftOut
from riskaudit.attacks.method_of_moments import MethodOfMoments
from riskaudit.attacks.plausibility import explains
from riskaudit.attacks.tableak import TabLeak
from riskaudit.attacks.tag import TransformerGradients
from riskaudit.attacks.token_span import TokenSpanAttack

__all__ = [
    "ATTACKS",
    "Analytic",
    "Attack",
    "AttackNotApplicable",
    "BayesOptimal",
    "CocktailParty",
    "DeepLeakage",
    "FeatureMatching",
    "GaussNewton",
    "GradInversion",
    "Imprint",
    "ImprovedDeepLeakage",
    "InvertingGradients",
    "KeptEntries",
    "LayerLeftOut",
    "Local",
    "MethodOfMoments",
    "Observation",
    "PublicTexts",
    "Reconstruction",
    "TabLeak",
    "TokenSpanAttack",
    "TransformerGradients",
    "explains",
    "label_counts",
    "recover_batch_labels",
    "recover_labels",
    "with_labels",
]

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
