"""Torch networks: the U-Net of Ho et al. with its published variants, saved as safetensors and JSON, never pickle."""

from tinyddpm.nn.unet import UNet

__all__ = ["UNet"]
