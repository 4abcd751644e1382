#!/usr/bin/env bash
# ./run_all.sh [OPTIONS]              run the notebooks
# ./run_all.sh test [OPTIONS]         run the tests; options go to pytest
# ./run_all.sh lab [OPTIONS]          open the notebooks in JupyterLab
# ./run_all.sh --wheelhouse DIR ...   with any of them: install from a folder of wheels, without network
#
# Options of a run (python -m mergelib run --help says more):
#   --profile NAME            quick, mini (default), real, real_mpnet or paper
#   --only NAME ...           notebooks or groups: lesson tab02 text
#   --list                    list the notebooks, their parameters and minutes
#   --html                    render the executed notebooks to a book: build/PROFILE/html/index.html
#   -p NAME=VALUE             set a notebook's parameter
#   --text-dir DIR, --image-dir DIR, --base MODEL, --text-column N    your own files and base model
#   --jobs N                  notebooks at a time
#   --publish                 for maintainers: refresh notebooks, figures, report and README
#
# Your own models: python -m mergelib --help.
# Uses the active virtual or conda environment when it holds the pinned packages, else makes .venv here (once, a few minutes).
set -euo pipefail
cd "$(dirname "$0")"

for argument in "$@"; do
  case "$argument" in
    test | lab) break ;;  # pytest and JupyterLab have a --help of their own
    -h | --help) sed -n '/^#!/d; /^#/!q; s/^# \{0,1\}//p' run_all.sh; exit ;;
  esac
done

pip_options=()
if [ "${1:-}" = "--wheelhouse" ]; then
  [ -d "${2:-}" ] || { echo "run_all.sh: --wheelhouse needs a folder of wheels" >&2; exit 2; }
  wheelhouse=$(cd "$2" && pwd)
  pip_options=(--no-index --find-links "$wheelhouse")
  shift 2
fi

# holds_pins PYTHON EXTRA: exit status 0 when this interpreter holds every pinned package, those of the extra, and this very checkout.
holds_pins() {
  "$1" - "$2" <<'PY' >/dev/null 2>&1
import sys, tomllib
from importlib.metadata import version
from pathlib import Path
project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for pin in project["dependencies"] + project["optional-dependencies"][sys.argv[1]]:
    name, wanted = pin.split("==")
    assert version(name).split("+")[0] == wanted, name
sys.path = [p for p in sys.path if p not in ("", str(Path.cwd()))]
import mergelib
assert Path(mergelib.__file__).resolve().parent.parent == Path.cwd().resolve()
PY
}

python=""
if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && holds_pins python test; then
  python=python
elif [ -x .venv/bin/python ] && holds_pins .venv/bin/python test; then
  python=.venv/bin/python
else
  # The list alone is not worth an installation: JSON and regular expressions read the notebooks and their manifest.
  if [[ " $* " == *" --list "* ]] && command -v python3 >/dev/null; then
    exec python3 - "$@" <<'PY'
import ast, json, re, signal, sys
from pathlib import Path
signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as in: ./run_all.sh --list | head
given = " ".join(sys.argv[1:]).replace("=", " ").split()
profile = given[given.index("--profile") + 1] if "--profile" in given[:-1] else "mini"
minutes = re.split(r"(?m)^(\w+):\n", Path("mergelib/core/minutes.yaml").read_text("utf-8"))
minutes = dict(zip(minutes[1::2], minutes[2::2])).get(profile, "")
for block in re.split(r"(?m)^- ", Path("mergelib/core/manifest.yaml").read_text("utf-8"))[1:]:
    item = dict(re.findall(r"(?m)^ *(\w+): (.*)$", block))
    cells = json.loads(Path(f"notebooks/{item['id']}.ipynb").read_text("utf-8"))["cells"]
    code = next("".join(c["source"]) for c in cells if "parameters" in c["metadata"].get("tags", ()))
    named = ", ".join(f"{n.target.id}: {ast.unparse(n.annotation).split('[')[0]}" for n in ast.parse(code).body)
    took = re.search(rf"(?m)^ *{item['id']}: ([\d.]+)", minutes)
    took = f", {float(took[1]):g} min" if took else ""
    print(f"{item['id']:<24} {item['item']:<10} group {item['group']:<8} {item['title']}{took}\n{'':<24} -p {named}")
PY
  fi
  creator=""
  for candidate in python3 python3.13 python3.12 python3.11; do
    if command -v "$candidate" >/dev/null && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
      creator=$candidate
      break
    fi
  done
  [ -n "$creator" ] || { echo "run_all.sh: Python 3.11 or newer is needed; install it and run again." >&2; exit 2; }
  echo "run_all.sh: installing the pinned packages into .venv (once, a few minutes) ..."
  # A half-made .venv (an interrupt, a missing ensurepip, an old Python) is made anew.
  .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 || "$creator" -m venv --clear .venv
  # torch first and by its exact pin: a package that asks for "torch" then finds it satisfied.
  torch_pin=$(sed -n 's/^ *"\(torch==[^"]*\)".*/\1/p' pyproject.toml)
  # "${array[@]+...}": bash 3.2 calls an empty array unbound
  .venv/bin/python -m pip install --quiet --disable-pip-version-check ${pip_options[@]+"${pip_options[@]}"} "$torch_pin" "setuptools>=77" wheel
  .venv/bin/python -m pip install --quiet --disable-pip-version-check ${pip_options[@]+"${pip_options[@]}"} --no-build-isolation -e ".[test]"
  python=.venv/bin/python
fi

# Extras that only some commands need are installed when one of them is called.
extra=""
for argument in "$@"; do
  case "$argument" in
    --html) extra=book ;;
    browser) if [ "${1:-}" = "test" ]; then extra=book,browser; fi ;;
    cluster) if [ "${1:-}" = "test" ]; then extra=cluster; fi ;;
  esac
done
for name in ${extra//,/ }; do
  holds_pins "$python" "$name" && continue
  echo "run_all.sh: installing the pinned packages of the extra '$name' ..."
  "$python" -m pip install --quiet --disable-pip-version-check ${pip_options[@]+"${pip_options[@]}"} --no-build-isolation -e ".[$name]"
done

# The kernel must be this interpreter's, wherever a user's own kernels live.
prefix=$("$python" -c 'import sys; print(sys.prefix)')
export PATH="$prefix/bin:$PATH" JUPYTER_PREFER_ENV_PATH=1

case "${1:-}" in
  # The whole suite: a process a core, with one thread each.
  test) shift; [ $# -gt 0 ] || set -- -n auto --maxprocesses 4 --dist worksteal; exec "$python" -m pytest "$@" ;;
  # From the project's folder: a server rooted in notebooks/ could not show the figures beside it.
  lab)  shift; exec "$python" -m jupyterlab --ServerApp.root_dir="$PWD" --LabApp.default_url=/lab/tree/notebooks "$@" ;;
  *)    exec "$python" -m mergelib run "$@" ;;
esac
