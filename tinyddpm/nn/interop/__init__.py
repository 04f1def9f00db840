"""Weights of other libraries: diffusers' DDPM pipelines, read and written, and OpenAI's checkpoints, read.

Only JSON and safetensors are read, without the other library and without pickle. An option that this library does not have is an
error that names it; no option is ignored.
"""

from tinyddpm.nn.interop.diffusers import load_diffusers, save_diffusers
from tinyddpm.nn.interop.openai import load_openai

__all__ = ["load_diffusers", "load_openai", "save_diffusers"]
