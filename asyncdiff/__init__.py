"""AsyncPatch Diffusion: image diffusion in which every patch has its own noise level.

Importing the package is fast: `DiffusionModel`, which draws, and `AsyncDiffusion`, which trains it with Lightning, are
imported on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncdiff.model import DiffusionModel
    from asyncdiff.training.lightning_module import AsyncDiffusion

__all__ = ["AsyncDiffusion", "DiffusionModel"]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name == "AsyncDiffusion":
        from asyncdiff.training.lightning_module import AsyncDiffusion

        return AsyncDiffusion
    if name == "DiffusionModel":
        from asyncdiff.model import DiffusionModel

        return DiffusionModel
    raise AttributeError(f"module 'asyncdiff' has no attribute {name!r}")
