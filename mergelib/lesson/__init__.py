"""What ``00_start_here`` needs beyond the library: a toy in the plane, its pictures and sliders;
and checks of the exercises, also of the core notebooks."""

from .checks import (
    all_right,
    check_breaking_turn,
    check_choice,
    check_head,
    check_loss,
    check_number,
    check_prediction,
    check_turn,
)
from .toy import make_toy, turn, turned_by
from .view import alt_summary, draw_real, draw_summary, explore, score_toy
