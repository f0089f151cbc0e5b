"""A run as one page that needs no network: RUN/report.html. See `build`."""

from fieldguide.report.build import build, topics
from fieldguide.report.figures import save as save_figures

__all__ = ["build", "save_figures", "topics"]
