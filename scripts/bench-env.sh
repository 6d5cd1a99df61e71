#!/usr/bin/env bash
#
# Makes the Python environment of the rivals in benches/embed and benches/race, and prints the path of its interpreter
# as the last line of standard output; everything else goes to standard error.
#
#   PY=$(scripts/bench-env.sh | tail -1)
#   "$PY" benches/race/run.py --embank target/release/embank
#
# It lies over the environment of python-env.sh (torch, sentence-transformers), which is made first: the packages of that one
# are seen from here, so that torch is on disk once. Nothing of it is needed to build, test or use embank.
#
# - It lies outside the repository: "$EMBANK_BENCH_PY", or embank/python-bench in the user's cache directory.
# - Every version is pinned and pip resolves nothing (--no-deps), so all machines race the same rivals.
# - Running it again is instant; after a change of the pins, or an interrupted run, it starts anew. About 0.6 GB on disk.
#
# Needs what python-env.sh needs.

set -euo pipefail

venv=${EMBANK_BENCH_PY:-${XDG_CACHE_HOME:-$HOME/.cache}/embank/python-bench}
base=$("$(dirname "$0")/python-env.sh" | tail -1)

pins=$(
    cat <<PINS
# ONNX Runtime, and what exports and fuses a graph for it.
onnxruntime==1.31.1
onnx==1.23.2
onnxscript==0.7.2
onnx-ir==1.1.0
ml-dtypes==0.6.0
flatbuffers==25.12.19
protobuf==7.36.2
# LanceDB, the store of the script and of cocoindex.
lancedb==0.40.0
lance-namespace==0.13.0
lance-namespace-urllib3-client==0.13.0
pyarrow==26.0.1
deprecation==2.1.0
overrides==7.7.0
python-dateutil==4.0.0
tzdata==2026.6
urllib3==2.8.0
# cocoindex.
cocoindex==1.0.26
msgspec==0.22.0
psutil==7.2.2
python-dotenv==1.2.4
watchdog==7.1.0
PINS
)

main() {
    # The stamp is written last, so an interrupted run leaves none; and it holds the pins, so a change of them shows.
    if [[ ! -x $venv/bin/python || ! -f $venv/embank-pins.txt || $(<"$venv/embank-pins.txt") != "$pins" ]]; then
        install >&2
        printf '%s\n' "$pins" >"$venv/embank-pins.txt"
    fi
    echo "$venv/bin/python"
}

install() {
    # A fresh start empties the folder, so it has to be one of ours.
    if [[ -d $venv && ! -f $venv/pyvenv.cfg && -n $(ls -A "$venv") ]]; then
        echo "bench-env: $venv is not empty and not a virtual environment: name another folder in EMBANK_BENCH_PY" >&2
        exit 1
    fi
    echo "bench-env: making $venv"
    "$base" -m venv --clear "$venv"
    local packages
    packages='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$base" -c "$packages" >"$("$venv/bin/python" -c "$packages")/embank-python.pth"
    "$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-cache-dir --no-deps \
        --requirement <(printf '%s\n' "$pins")
    COCOINDEX_DISABLE_USAGE_TRACKING=1 "$venv/bin/python" -c 'import cocoindex, lancedb, onnx, onnxruntime, sentence_transformers'
}

main "$@"
