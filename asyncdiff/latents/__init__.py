"""Codecs: between pixels and the space that a model works in, latents of an autoencoder say.

A codec is never trained and never in a checkpoint, which names it and the files that it is read from. Importing this
package imports no library of autoencoders; files are opened at first use.
"""

from asyncdiff.latents.autoencoder import Autoencoder
from asyncdiff.latents.codec import Codec, Identity, Moments, check_same
from asyncdiff.latents.diffusers_vae import DiffusersAutoencoder
from asyncdiff.latents.taesd import TinyAutoencoder

__all__ = [
    "Autoencoder",
    "Codec",
    "DiffusersAutoencoder",
    "Identity",
    "Moments",
    "TinyAutoencoder",
    "check_same",
]
