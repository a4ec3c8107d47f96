"""Codecs convert between pixels and the space that a model works in, such as the latents of an autoencoder.

Codecs are never trained. Checkpoints store their class and file paths, never their weights. Importing this package
imports no autoencoder library; files are opened at first use.
"""

from asyncdiff.latents.autoencoder import Autoencoder
from asyncdiff.latents.codec import Codec, Identity, Moments, check_same_codec
from asyncdiff.latents.diffusers_vae import DiffusersAutoencoder
from asyncdiff.latents.taesd import TinyAutoencoder

__all__ = [
    "Autoencoder",
    "Codec",
    "DiffusersAutoencoder",
    "Identity",
    "Moments",
    "TinyAutoencoder",
    "check_same_codec",
]
