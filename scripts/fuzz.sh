#!/usr/bin/env bash
# Runs the fuzz targets of fuzz/ on stable Rust: scripts/fuzz.sh [SECONDS-EACH] [TARGET...]
#
# This repository's code alone is compiled for coverage; all other crates are those of the ordinary build, from the same
# build directory, so that nothing else compiles again. An input that fails is left in fuzz/artifacts, and the run ends
# with 1 after all targets had their time. A folder FUZZ_CORPUS keeps what is found interesting from run to run.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-600}
targets=("${@:2}")
[ ${#targets[@]} -gt 0 ] || for file in fuzz/corpus/*; do targets+=("$(basename "$file")"); done

export CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$PWD/target}"
scratch="$CARGO_TARGET_DIR/fuzz"
corpus="${FUZZ_CORPUS:-$scratch/corpus}"
artifacts="$PWD/fuzz/artifacts"
mkdir -p "$scratch" "$corpus" "$artifacts"

# The same versions and the same profile as the crate's own, or the other crates would compile anew.
cp Cargo.lock fuzz/Cargo.lock
{
    sed -n '/^\[profile\.release\]/,$p' Cargo.toml
    printf '[profile.release.package.embank]\nopt-level = 2\ncodegen-units = 1\ndebug-assertions = true\noverflow-checks = true\n'
} > "$scratch/profile.toml"
cat > "$scratch/rustc" <<'WRAPPER'
#!/usr/bin/env bash
# Called by cargo as a wrapper of rustc: instruments the crates of this repository.
case "${CARGO_PKG_NAME:-}" in
    embank | embank-fuzz)
        exec "$@" --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
            -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
            -Cllvm-args=-sanitizer-coverage-trace-compares
        ;;
esac
exec "$@"
WRAPPER
chmod +x "$scratch/rustc"
bins=()
for target in "${targets[@]}"; do bins+=(--bin "$target"); done
RUSTC_WRAPPER="$scratch/rustc" cargo --config "$scratch/profile.toml" build --release ${FUZZ_OFFLINE:+--offline} \
    --manifest-path fuzz/Cargo.toml "${bins[@]}"

# Files that the targets write and read belong into memory.
[ -w /dev/shm ] && export TMPDIR=/dev/shm
failed=()
for target in "${targets[@]}"; do
    mkdir -p "$corpus/$target"
    # A picture of 16 million pixels may take a few hundred megabytes.
    limits=(-max_len=65536 -timeout=30 -rss_limit_mb=1024)
    echo "== $target, $seconds s"
    log="$scratch/$target.log"
    if "$CARGO_TARGET_DIR/release/$target" "$corpus/$target" "$PWD/fuzz/corpus/$target" "${limits[@]}" \
        -max_total_time="$seconds" -print_final_stats=1 "-artifact_prefix=$artifacts/$target-" > "$log" 2>&1; then
        grep -E '^#.*DONE|number_of_executed_units|peak_rss' "$log" || true
    else
        tail -30 "$log"
        failed+=("$target")
    fi
done
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}; the inputs are in fuzz/artifacts"; exit 1; }
