"""Unlabelled inputs of the command line; ``mergelib.tasks.data`` reads them."""

from ..tasks.data import unlabelled as read_inputs

__all__ = ["read_inputs"]
