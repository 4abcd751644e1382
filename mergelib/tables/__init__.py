"""From tidy scores to tables.

This module exports what every notebook uses. ``ladder``, ``controls``, ``ranking``, ``unlabelled``
and ``report`` each serve one notebook and are imported from there.
"""

from .clusters import cluster_panels
from .labels import (
    TASK_LABELS,
    encoder_label,
    labelled,
    protocol_label,
    short_label,
    task_label,
)
from .paper import (
    paper_cells,
    published,
    published_table2,
    published_table3,
    table3,
    with_paper_numbers,
)
from .provenance import provenance, public_overrides, versions
from .scores import (
    at_k,
    average_of,
    averages,
    knn_gain,
    lead_table,
    markdown,
    mean_and_std,
    mean_std_cell,
    shots_table,
    show,
    stack,
    wide,
    with_average,
)
from .tasks import (
    against_base,
    bounds_table,
    chance_level,
    contact_sheet,
    example_table,
    size_table,
    task_table,
    trained_table,
)
from .verdicts import verdict_table

__all__ = [
    "TASK_LABELS",
    "against_base",
    "at_k",
    "average_of",
    "averages",
    "bounds_table",
    "chance_level",
    "cluster_panels",
    "contact_sheet",
    "encoder_label",
    "example_table",
    "knn_gain",
    "labelled",
    "lead_table",
    "markdown",
    "mean_and_std",
    "mean_std_cell",
    "paper_cells",
    "protocol_label",
    "provenance",
    "public_overrides",
    "published",
    "published_table2",
    "published_table3",
    "short_label",
    "shots_table",
    "show",
    "size_table",
    "stack",
    "table3",
    "task_label",
    "task_table",
    "trained_table",
    "verdict_table",
    "versions",
    "wide",
    "with_average",
    "with_paper_numbers",
]
