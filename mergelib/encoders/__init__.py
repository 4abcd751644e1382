"""Encoders turn an input into one feature vector: ``text``, ``image`` and ``released``.

Architecture and preprocessing live here; weights are kept separately.
"""

from .image import ImageEncoder
from .released import ReleasedEncoder, released_encoder
from .text import (
    Encoder,
    PooledEncoder,
    TextEncoder,
    encoder_state,
    load_base,
    load_state,
)

__all__ = [
    "Encoder",
    "ImageEncoder",
    "PooledEncoder",
    "ReleasedEncoder",
    "TextEncoder",
    "encoder_state",
    "load_base",
    "load_state",
    "released_encoder",
]
