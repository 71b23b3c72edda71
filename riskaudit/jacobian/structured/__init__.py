"""J of a release by its layers: shared weights, all samples of a batch at once, no vector of the parameters' size.

docs/theory.md, section 5. A sample's gradient is a sum over *calls*, one for each use of parameters in the forward
pass. A call's gradient is a multilinear map of its *factors*: the activations that enter it and, last, the
back-propagated signal at its output. Phi is the map from a batch to all factors. Read in this order:

    registry     which function of torch is which layer; what isn't registered raises `UnsupportedLayer`
    recording    one forward pass, observed: a `Call` for each use of parameters, with a `Source` for each parameter
    batch_axis   where the samples are in an activation: along dimension ``dim``, ``repeats`` entries each
    signals      Phi at a batch, with its derivative and the transpose; `find_layout` traces a model, once
    contraction  what a call adds to the gradient, given its factors: gradient, tangent, cotangent
    layers/      a file for each family: contractions, each with the functions of torch that it stands for; activations
    normalized   normalizations whose second derivatives are cheap
    gradient     the gradient by its calls, as a map of Phi
    operator     products with J of the whole release
    uploads      the same for releases in which several samples leave together

Words: a *role* is what a layer calls a parameter ("weight", "bias"). A parameter may be rearranged linearly before a
layer takes it (transposed, cut, masked): such a *view* is recorded and undone by its transpose. *Batch dependence* is
decided once for a use of a parameter that could be one for all samples or one for each (positions added to tokens, say)
and kept for later batches.

A new layer is one file in ``layers`` and its test. Say, y = X w with a vector w, whose gradient is b a for a sample
with input a and signal b:

>>> import torch
>>> from riskaudit.jacobian.structured.contraction import FormedContraction
>>> from riskaudit.jacobian.structured.registry import register
>>> class DotContraction(FormedContraction):
...     'Factors a [B, n] and b [B]; the weight is [n].'
...
...     def gradient(self):
...         a, b = self.factors
...         return {"weight": b[:, None] * a}
...
...     def tangent(self, tangents):
...         (a, b), (da, db) = self.factors, tangents
...         return {"weight": db[:, None] * a + b[:, None] * da}
...
...     def cotangent(self, cotangents):
...         (a, b), weight = self.factors, cotangents["weight"]
...         return [b[:, None] * weight, (a * weight).sum(1)]
...
...     def held_numbers(self):
...         return 0
>>> @register(torch.mv, torch.Tensor.mv)
... def _mv(recorder, input, vec):
...     make = lambda factors, roles, axis: DotContraction(factors, roles)
...     return recorder.record_call("Dot", [input], torch.mv(input, vec), make, weight=vec)

Its test inherits `ContractionContract` (tests/contracts/contraction.py). A layer whose weight is large overrides `gram`
and `rotated_tangent`, which then never form it (`layers.linear`).
"""

from riskaudit.jacobian.structured import layers
from riskaudit.jacobian.structured.operator import SeparateJacobian, StructuredJacobian, agree, by_layers
from riskaudit.jacobian.structured.registry import UnsupportedLayer
from riskaudit.jacobian.structured.signals import Layout, find_layout
from riskaudit.jacobian.structured.uploads import SampleBlocks, UploadJacobian

__all__ = [
    "Layout",
    "SampleBlocks",
    "SeparateJacobian",
    "StructuredJacobian",
    "UnsupportedLayer",
    "UploadJacobian",
    "agree",
    "by_layers",
    "find_layout",
    "layers",
]
