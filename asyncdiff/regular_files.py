"""Opening of regular files only, by the rule that data modules follow, too."""

from datamodules.regular_files import check_regular, open_regular

__all__ = ["check_regular", "open_regular"]
