"""Golden outputs: what each stored step gives on ``quick``, in one number per method or protocol.

A result that changes under an unchanged step version must not go unnoticed: old artifacts would be
taken for new ones. After such a change raise the step's version in ``mergelib`` and write the
numbers anew: ``MERGELIB_GOLDEN=write python -m pytest tests/test_notebooks.py -k golden``.
"""

import json
import platform
from collections import defaultdict
from pathlib import Path

import torch
from safetensors.torch import load_file

FILE = Path(__file__).with_name("golden.json")
# Other instructions round otherwise, and fine-tuning and t-SNE make much of it.
MACHINE = [torch.__version__, platform.machine(), torch.backends.cpu.get_cpu_capability()]


def size(tensor):
    """Mean absolute value, in weights by which a permuted tensor has another one."""
    values = tensor.double().abs().flatten()
    return float((values * (1.5 + torch.arange(len(values)).double().cos())).mean())


def outputs(store):
    """Step and what it was asked for -> the number of artifacts, and their mean size."""
    sizes = defaultdict(list)
    for path in store.glob("*/*/meta.json"):
        meta = json.loads(path.read_text())
        asked = [meta["key"].get(p) for p in ("method", "protocol", "rung", "kind", "model")]
        name = " ".join([meta["step"], *filter(None, asked)])
        tensors = load_file(path.with_name("tensors.safetensors"))
        sizes[name].append(sum(size(t) for t in tensors.values()))
    return {name: [len(s), sum(sorted(s)) / len(s)] for name, s in sorted(sizes.items())}


def write(now):
    """The file, a line per number."""
    lines = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in now["outputs"].items())
    parts = [f' "{k}": {json.dumps(now[k])}' for k in ("machine", "versions")]
    FILE.write_text("{\n" + ",\n".join(parts) + f',\n "outputs": {{\n{lines}\n }}\n}}\n')
