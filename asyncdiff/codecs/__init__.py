"""Codecs: between pixels and the space that a model works in, latents of an autoencoder say.

A codec is never trained and never in a checkpoint, which names it and the files that it is read from. Importing this
package imports no library of autoencoders; files are opened at first use.
"""

from asyncdiff.codecs.autoencoders import Autoencoder
from asyncdiff.codecs.codec import Codec, Identity, Moments, check_same
from asyncdiff.codecs.diffusers_autoencoders import DiffusersAutoencoder
from asyncdiff.codecs.tiny_autoencoders import TinyAutoencoder

__all__ = [
    "Autoencoder",
    "Codec",
    "DiffusersAutoencoder",
    "Identity",
    "Moments",
    "TinyAutoencoder",
    "check_same",
]
