"""Ties on whole tensors, as Eq. 3 stands; ``test_columns_by_hand`` checks it."""

import torch


def trim(tau, keep):
    """``tau [D]`` with all but the int(D * keep) largest magnitudes, and what ties, set to 0."""
    n_keep = int(tau.numel() * keep)
    if n_keep == 0:
        return torch.zeros_like(tau)
    magnitude = tau.abs()
    threshold = magnitude.kthvalue(tau.numel() - n_keep + 1).values
    return torch.where(magnitude >= threshold, tau, 0.0)


def agreeing(trimmed):
    """The entries of ``[T, D]`` that carry the elected sign: of the column's sum, or of all
    signs."""
    signs = trimmed.sum(0).sign()
    signs = torch.where(signs == 0, signs.sum().sign(), signs)
    return torch.where(signs > 0, trimmed > 0, trimmed < 0)


def merged_vector(taus, keep, combine):
    """The T task vectors ``[D]`` merged; added up one after the other."""
    trimmed = torch.stack([trim(tau, keep) for tau in taus])
    agrees = agreeing(trimmed)
    total = sum(torch.where(agrees, trimmed, 0.0))
    return total / agrees.sum(0).clamp(min=1) if combine == "mean" else total
