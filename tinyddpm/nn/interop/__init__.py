"""Weights of other libraries: diffusers' DDPM pipelines both ways, OpenAI's checkpoints in.

Only JSON and safetensors are read, without the other library and without pickle. What has no equal here is refused by
name, never ignored.
"""

from tinyddpm.nn.interop.diffusers import load_diffusers, save_diffusers
from tinyddpm.nn.interop.openai import load_openai

__all__ = ["load_diffusers", "load_openai", "save_diffusers"]
