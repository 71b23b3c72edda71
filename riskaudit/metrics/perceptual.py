"""LPIPS: distance in the feature space of an ImageNet network (Zhang et al., CVPR 2018), by the lpips package.

Sum over layers of the spatial mean of w_l . (f_l(xhat) - f_l(x))^2, f_l normalised over channels, w_l fitted to
people's judgements. Grey images are repeated to three channels, values scaled to [-1, 1] by the input range.

The package holds w_l; the backbone's weights come from a local folder or the torch hub cache, loaded as tensors
only. Nothing is ever downloaded: without them the metric isn't applicable and the reason gives the command
that fetches them.

Images that the backbone's pooling would shrink to nothing are enlarged (bilinear) until their shorter side has
the 64 pixels of the patches that w_l was fitted on; ``note`` says so. Such values aren't those of the small image.
"""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import override

from riskaudit.metrics.base import Metric, Subject, lpips_package, register
from riskaudit.torchvision_compat import import_torchvision

PATCH_SIDE = 64
_BATCH = 32
_BROKEN = (OSError, RuntimeError, ValueError, KeyError, AttributeError, TypeError, EOFError, pickle.UnpicklingError)


class _Perceptual(Metric):
    units = "0 = identical"
    source = "Zhang et al., CVPR 2018"
    network: ClassVar[str]
    backbone: ClassVar[str]
    smallest_side: ClassVar[int]

    def __init__(self, subject: Subject) -> None:
        super().__init__(subject)
        self._model: nn.Module | None = None
        shape = subject.input_shape
        if len(shape) != 3 or shape[0] not in {1, 3}:
            self.reason = "the inputs are not images of one or three channels"
        elif subject.span is None:
            self.reason = "the input range is unknown or empty"
        else:
            self._load()
            if min(shape[1:]) < self.smallest_side:
                self.note = f"images of {shape[1]} x {shape[2]} pixels are enlarged to {PATCH_SIDE} pixels"

    def _load(self) -> None:
        """Fetch the backbone from the disk, or set the reason why there is none."""
        url = import_torchvision().models.get_model_weights(self.backbone).DEFAULT.url
        name = url.rpartition("/")[2]
        folder = self.subject.weights_folder or Path(torch.hub.get_dir()) / "checkpoints"
        if not (folder / name).is_file():
            self.reason = (
                f"the weights {name} are not in the torch hub cache; fetch them once with "
                f"python -c \"import torch; torch.hub.load_state_dict_from_url('{url}')\""
            )
            if self.subject.weights_folder is not None:
                self.reason = f"the weights {name} are not in the folder given; they are published at {url}"
            return
        try:
            state = torch.load(folder / name, map_location="cpu", weights_only=True)
            # lpips names "slice2.3.weight" what torchvision calls "features.3.weight".
            model = _without_backbone(self.network)
            names = list(model.net.state_dict())
            model.net.load_state_dict({name: state["features." + name.split(".", 1)[1]] for name in names})
            filled: nn.Module = model.requires_grad_(False)
            self._model = filled
        except _BROKEN as error:
            # The message of the exception may name the folder, which is nobody's business.
            self.reason = f"the weights {name} can't be read as those of {self.backbone} ({type(error).__name__})"

    @override
    def __call__(self, reconstruction: Tensor, truth: Tensor) -> Tensor:
        if self._model is None:
            raise ValueError(f"expected the backbone's weights, found none: {self.reason}")
        model = self._model.to(reconstruction.device)
        values = []
        with torch.no_grad():
            for start in range(0, len(truth), _BATCH):
                guess, target = reconstruction[start : start + _BATCH], truth[start : start + _BATCH]
                values.append(model(self._image(guess), self._image(target.to(guess))).flatten())
        return torch.cat(values).double().cpu()

    def _image(self, inputs: Tensor) -> Tensor:
        """Inputs [B, C, H, W] in data units as the network takes them: float32, three channels, [-1, 1]."""
        if self.subject.input_range is None or self.subject.span is None:
            raise ValueError(f"expected an input range, found none: {self.reason}")
        scaled = 2 * (inputs.float() - self.subject.input_range[0]) / self.subject.span - 1
        images = scaled.expand(-1, 3, -1, -1) if scaled.shape[1] == 1 else scaled
        shorter = min(images.shape[2:])
        if shorter >= self.smallest_side:
            return images
        size = [round(side * PATCH_SIDE / shorter) for side in images.shape[2:]]
        return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def _without_backbone(network: str) -> Any:
    """LPIPS with its own fitted weights w_l and a backbone that still has to be filled."""
    # The backbone is drawn at random before it is filled: the caller's generator must not notice.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # lpips calls torchvision with an argument that is deprecated.
        warnings.simplefilter("ignore")
        return lpips_package().LPIPS(net=network, pnet_rand=True, verbose=False).eval()


@register
class PerceptualAlex(_Perceptual):
    """LPIPS with AlexNet, the authors' default for comparing images."""

    name = "lpips"
    title = "LPIPS (AlexNet)"
    order = 50
    network = "alex"
    backbone = "alexnet"
    smallest_side = 31


@register
class PerceptualVgg(_Perceptual):
    """LPIPS with VGG-16."""

    name = "lpips_vgg"
    title = "LPIPS (VGG-16)"
    in_reports = False
    network = "vgg"
    backbone = "vgg16"
    smallest_side = 16


@register
class PerceptualSqueeze(_Perceptual):
    """LPIPS with SqueezeNet 1.1."""

    name = "lpips_squeeze"
    title = "LPIPS (SqueezeNet)"
    in_reports = False
    network = "squeeze"
    backbone = "squeezenet1_1"
    smallest_side = 17
