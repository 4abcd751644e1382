"""Figures: tidy scores in, a ``Figure`` out, in one style; and the files that they are saved as."""

from .comparison import plot_comparison, report_table
from .plots import (
    plot_clusters,
    plot_contact_sheet,
    plot_controls,
    plot_cost,
    plot_ladder,
    plot_lam,
    plot_non_locality,
    plot_protocols,
    plot_ranking,
    plot_samples,
    plot_shares,
    plot_shots,
    plot_sizes,
    plot_variance,
)
from .report import plot_report, save_report
from .save import save_figure, save_files
from .schematic import alt as alt_drawing
from .schematic import draw_protocols, protocol_table
from .style import PROTOCOL_STYLE, use_style
