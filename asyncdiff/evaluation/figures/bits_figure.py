"""Draw likelihood bounds by patch and by noise level, with one column per path."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from asyncdiff.denoising.likelihood import LEVEL_EDGES
from asyncdiff.evaluation.figures.style import BLUE, FAINT, Sheet, label, plot_style
from asyncdiff.evaluation.likelihood_by_path import PathLikelihoods

# In inches.
LEFT, RIGHT, COLUMN, GAP, BAR = 0.75, 0.75, 1.6, 0.3, 0.1
TITLE, MAP, BETWEEN, LEVELS, BOTTOM = 0.5, 1.6, 0.3, 1.1, 0.65


def bits_figure(likelihoods: PathLikelihoods) -> Figure:
    """Draw maps of the mean bound on a common color scale, and below them the contributions by noise level."""
    count = len(likelihoods.names)
    width = LEFT + count * (COLUMN + GAP) - GAP + RIGHT
    with plot_style():
        sheet = Sheet(width, TITLE + MAP + BETWEEN + LEVELS + BOTTOM)
        maps = [likelihoods.patch_means(name) for name in likelihoods.names]
        low, high = min(float(m.min()) for m in maps), max(float(m.max()) for m in maps)
        levels = [likelihoods.level_contributions(name).tolist() for name in likelihoods.names]
        tallest = max(max(values) for values in levels)
        for column, name in enumerate(likelihoods.names):
            left = LEFT + column * (COLUMN + GAP)
            error = likelihoods.standard_error(name)
            sheet.text(left, 0.1, label(name), weight="bold")
            sheet.text(
                left, 0.27, f"{likelihoods.mean(name):.3f} ± {error:.3f} {likelihoods.unit}", color=FAINT, size=7
            )
            axes = sheet.axes(left, TITLE, COLUMN, MAP)
            image = axes.imshow(maps[column].numpy(), vmin=low, vmax=high, cmap="cividis")
            axes.set_xticks([])
            axes.set_yticks([])
            below = sheet.axes(left, TITLE + MAP + BETWEEN, COLUMN, LEVELS)
            _draw_levels(below, levels[column], tallest, labeled=column == 0, unit=likelihoods.unit)
        scale = sheet.axes(width - RIGHT + 0.1, TITLE, BAR, MAP)
        sheet.figure.colorbar(image, cax=scale, label=f"{likelihoods.unit} of the patch")
    return sheet.figure


def _draw_levels(axes: Axes, values: list[float], tallest: float, *, labeled: bool, unit: str) -> None:
    axes.bar(range(len(values)), values, color=BLUE, width=0.8)
    axes.set_ylim(min(0, *values), tallest * 1.05)
    axes.set_xticks(range(len(values)), [f"{edge:g}" for edge in LEVEL_EDGES], rotation=90)
    axes.set_xlabel("noise level t up to")
    if labeled:
        axes.set_ylabel(f"diffusion term\n[{unit}]")
    else:
        axes.set_yticklabels([])
