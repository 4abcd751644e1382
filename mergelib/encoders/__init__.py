"""Encoders turn an input into one feature vector: ``text``, ``image`` and ``released``.

Architecture and preprocessing live here; weights are kept separately.
"""

from .image import ImageEncoder, ImageFeatures
from .released import ReleasedEncoder, released_encoder
from .text import (
    Encoder,
    PooledEncoder,
    TextEncoder,
    architecture,
    encoder_class,
    encoder_state,
    load_base,
    load_state,
    shared_names,
)

__all__ = [
    "Encoder",
    "ImageEncoder",
    "ImageFeatures",
    "PooledEncoder",
    "ReleasedEncoder",
    "TextEncoder",
    "architecture",
    "encoder_class",
    "encoder_state",
    "load_base",
    "load_state",
    "released_encoder",
    "shared_names",
]
