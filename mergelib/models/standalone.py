"""Load one task's classifier from this folder: the encoder and the task's own head.

Needs torch, transformers, safetensors only.

    from load_merged import load, tasks
    model = load("task")                        # an ordinary transformers classifier

or, as a command that writes an ordinary single-task folder: ``python load_merged.py TASK OUT``.
"""

import json
import sys
from pathlib import Path

import transformers
from safetensors.torch import load_file

HERE = Path(__file__).resolve().parent


def tasks(folder=HERE):
    """Names of the tasks whose heads are in the folder."""
    return sorted(p.parent.name for p in Path(folder).glob("heads/*/config.json"))


def load(task, folder=HERE):
    """The classifier of ``task``, in evaluation mode."""
    folder = Path(folder)
    if task not in tasks(folder):
        raise ValueError(f"No head for task {task!r} here. Heads: {', '.join(tasks(folder))}.")
    index = folder / "model.safetensors.index.json"
    files = (
        sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if index.exists()
        else ["model.safetensors"] * (folder / "model.safetensors").exists()
    )
    state = {name: tensor for file in files for name, tensor in load_file(folder / file).items()}
    state.update(load_file(folder / "heads" / task / "head.safetensors"))
    config = transformers.AutoConfig.from_pretrained(folder / "heads" / task)
    model_class = getattr(transformers, config.architectures[0])
    return model_class.from_pretrained(None, config=config, state_dict=state).eval()


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(f"usage: python load_merged.py TASK OUT    tasks: {', '.join(tasks())}")
    load(sys.argv[1]).save_pretrained(sys.argv[2])
    # A task that reads its inputs differently has its own tokenizer next to its head.
    for place in (HERE / "heads" / sys.argv[1], HERE):
        if any(place.glob("tokenizer*")) or any(place.glob("preprocessor_config.json")):
            image = (place / "preprocessor_config.json").exists()
            kind = transformers.AutoImageProcessor if image else transformers.AutoTokenizer
            kind.from_pretrained(place).save_pretrained(sys.argv[2])
            break
