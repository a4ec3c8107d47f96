"""AsyncPatch Diffusion: image diffusion in which every patch has its own noise level.

Importing the package costs nothing: `AsyncDiffusion` (and with it Lightning) is loaded on first use.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asyncdiff.training.module import AsyncDiffusion

__all__ = ["AsyncDiffusion"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "AsyncDiffusion":
        from asyncdiff.training.module import AsyncDiffusion

        return AsyncDiffusion
    raise AttributeError(f"module 'asyncdiff' has no attribute {name!r}")
