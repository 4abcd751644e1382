"""From tidy scores to tables.

This module exports what every notebook uses. ``ladder``, ``controls``, ``ranking``, ``unlabelled``
and ``report`` each serve one notebook and are imported from there.
"""

from .clusters import cluster_panels
from .labels import (
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
