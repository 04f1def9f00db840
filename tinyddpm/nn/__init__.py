"""Torch networks: the U-Net of Ho et al. and its published variants, saved as safetensors and JSON, never as pickle."""

from tinyddpm.nn.bridge import to_backend
from tinyddpm.nn.chain import load_model
from tinyddpm.nn.interop import load_diffusers, load_openai, save_diffusers
from tinyddpm.nn.unet import UNet

__all__ = ["UNet", "load_diffusers", "load_model", "load_openai", "save_diffusers", "to_backend"]
