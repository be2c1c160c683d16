"""BK-SDM (Kim et al., 2023): a U-Net with whole layers removed, retrained by distillation, sampled densely.

Every down and up stage loses one residual-and-attention pair: down stages keep their first pair, which processes the
changed resolution; up stages lose their middle pair, so that the outputs of the down stages keep their skip
connections. `small` also loses the mid block, `tiny` the innermost stage as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from diffusers import UNet2DConditionModel
from torch import nn

from baselines.plan import Plan, PlanContext
from dipgo.errors import DipgoError, unknown
from dipgo.weights import load_whole

VARIANTS = ("base", "small", "tiny")
EXAMPLES = tuple({"variant": variant} for variant in VARIANTS)


def variant_of(denoiser: nn.Module) -> str:
    """Return the variant whose shape a denoiser has; raise `DipgoError` for any other shape."""
    if not isinstance(denoiser, UNet2DConditionModel):
        raise DipgoError(f"{type(denoiser).__name__} is no BK-SDM checkpoint; give a UNet2DConditionModel's")
    layers, stages = denoiser.config.layers_per_block, len(denoiser.down_blocks)
    if layers == 1 and denoiser.mid_block is not None and stages == 4:
        return "base"
    if layers == 1 and denoiser.mid_block is None and stages in (3, 4):
        return "small" if stages == 4 else "tiny"
    mid = "no mid block" if denoiser.mid_block is None else "a mid block"
    raise DipgoError(
        f"a U-Net of {stages} stages with {layers} layers each and {mid} is no BK-SDM shape; "
        "make one of a full U-Net with baselines.bk_sdm.build(unet, variant)"
    )


def load(source: str | Path) -> UNet2DConditionModel:
    """Return the float32 U-Net of a diffusers folder or of a hub id such as ``nota-ai/bk-sdm-small``.

    Raises `DipgoError` where there is no U-Net in safetensors, where a weight is missing or left over, or where its
    shape is no BK-SDM's. Pickled weights are not read.
    """
    try:
        unet = load_whole(UNet2DConditionModel, source, subfolder="unet")
    except DipgoError as error:
        raise DipgoError(
            f"no BK-SDM U-Net in {source}: {error}; give a Stable Diffusion folder or hub id with safetensors weights"
        ) from error
    variant_of(unet)
    return unet


def _origin(key: str, variant: str) -> str:
    """Return the name that a removed U-Net's weight has in the full U-Net."""
    parts = key.split(".")
    if parts[0] == "up_blocks":
        parts[1] = str(int(parts[1]) + (variant == "tiny"))
        if parts[2] in ("resnets", "attentions"):
            parts[3] = {"0": "0", "1": "2"}[parts[3]]
    return ".".join(parts)


def build(unet: UNet2DConditionModel, variant: str) -> UNet2DConditionModel:
    """Return the removed architecture as a new U-Net with copies of the weights that ``unet`` has for it.

    Raises `DipgoError` for a U-Net that is not of Stable Diffusion 1's or 2's shape, and for ``tiny`` where its two
    innermost stages differ in width.
    """
    if variant not in VARIANTS:
        raise unknown("BK-SDM variant", variant, VARIANTS)
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    stages = len(unet.down_blocks)
    if config["layers_per_block"] != 2 or unet.mid_block is None or stages != 4:
        raise DipgoError("BK-SDM removes layers of a U-Net of 4 stages with 2 layers each and a mid block")
    changed: dict[str, object] = {"layers_per_block": 1}
    if variant != "base":
        changed["mid_block_type"] = None
    if variant == "tiny":
        changed |= {key: config[key][:-1] for key in ("down_block_types", "block_out_channels")}
        changed["up_block_types"] = config["up_block_types"][1:]
    removed = UNet2DConditionModel.from_config({**config, **changed})
    weights = unet.state_dict()
    try:
        removed.load_state_dict({key: weights[_origin(key, variant)] for key in removed.state_dict()})
    except RuntimeError as error:
        raise DipgoError(
            f"the U-Net's weights do not fit BK-SDM {variant}: its two innermost stages have "
            f"{config['block_out_channels'][-2:]} channels and must be of one width"
        ) from error
    return removed.to(unet.dtype)


@dataclass(frozen=True)
class Params:
    """The parameters of `plan`."""

    variant: str
    """The variant of which the run's model must be a checkpoint."""


def plan(context: PlanContext, params: Params) -> Plan:
    """Return the dense plan; the model of the run must be a checkpoint of the variant that the run asks for."""
    asked, found = params.variant, variant_of(context.denoiser)
    if asked not in VARIANTS:
        raise unknown("BK-SDM variant", asked, VARIANTS)
    if asked != found:
        raise DipgoError(f"the run asks for BK-SDM {asked} but its model is of BK-SDM {found}'s shape")
    return context.dense()
