"""``python -m benchmarks.permutation_matching [--noise 0.5] [--strangers] [--layers 12]``: matching
two models of BERT-base's size.

A holds random weights of BERT-base's shape; B is A with noise (of ``--noise`` times each tensor's
standard deviation) and then every unit moved by a random permutation. Printed: seconds, sweeps, and
the share of units found again. With ``--strangers`` B's weights
are drawn anew: nothing is to be found, and the assignments are the hardest there are; ``--sweeps``
bounds them.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import sys
import time
from functools import partial

import torch
from torch import Tensor

from mergelib.nonlocality.spec import Permutations, PermutationSpec


def random_permutations(spec: PermutationSpec, generator: torch.Generator) -> dict[str, Tensor]:
    """Random permutations; every composition of the symmetries is equally likely."""
    drawn: dict[str, Tensor] = {}
    for root, family in spec.families.items():
        n = spec.groups[root].size
        drawn[root] = torch.randperm(n, generator=generator)
        for name in family[1:]:
            w = spec.groups[name].size // n
            inside = torch.stack([torch.randperm(w, generator=generator) for _ in range(n)])
            drawn[name] = (drawn[root][:, None] * w + inside).flatten()
    return {name: drawn[name] for name in spec.groups}


def inverse(permutations: Permutations) -> dict[str, Tensor]:
    """The inverse of ``permutations``."""
    return {name: index.argsort() for name, index in permutations.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--noise", type=float, default=0.5)
    parser.add_argument("--strangers", action="store_true")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--sweeps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    from transformers import BertConfig, BertModel

    from mergelib.core.progress import progress
    from mergelib.nonlocality.architectures import spec_for
    from mergelib.nonlocality.matching import weight_matching

    torch.manual_seed(args.seed)
    config = BertConfig(num_hidden_layers=args.layers)
    spec = spec_for(config)
    a = {n: t.detach() for n, t in BertModel(config, add_pooling_layer=False).state_dict().items()}
    generator = torch.Generator().manual_seed(args.seed + 1)
    planted = random_permutations(spec, generator)
    if args.strangers:
        b = {
            n: t.detach()
            for n, t in BertModel(config, add_pooling_layer=False).state_dict().items()
        }
        planted = spec.identity()
    else:
        # Biases and norms are constant in a fresh model: they would stay equal, and say nothing.
        b = {
            n: t + args.noise * t.std() * torch.randn(t.shape, generator=generator)
            for n, t in a.items()
        }
    b = spec.apply(planted, b)

    print(
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, load "
        f"{os.getloadavg()[0]:.1f}; "
        f"{sum(t.numel() for t in a.values()) / 1e6:.0f} M parameters, {len(spec.groups)} groups; "
        f"{'strangers' if args.strangers else f'planted, noise {args.noise:g}'}, seed {args.seed}",
        flush=True,
    )
    start = time.perf_counter()
    matching = weight_matching(
        spec, a, b, seed=args.seed, sweeps=args.sweeps, progress=partial(progress, desc="match")
    )
    seconds = time.perf_counter() - start
    wanted = inverse(planted)
    found = sum(int((matching.permutations[g] == wanted[g]).sum()) for g in wanted) / sum(
        map(len, wanted.values())
    )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
        1 if sys.platform == "darwin" else 1024
    )
    print(
        f"{seconds:.1f} s, {matching.sweeps} sweeps, "
        f"{'converged' if matching.converged else 'cut'}; "
        f"{'' if args.strangers else f'{100 * found:.2f} % of the units found again; '}objective "
        f"{matching.objective[0]:.1f} to "
        f"{matching.objective[-1]:.1f}; resident at most {peak / 1e9:.1f} GB"
    )


if __name__ == "__main__":
    main()
