#!/bin/sh
# Prove the C core without Python: strict warnings, ASan + UBSan, 64-bit Arm under qemu, and short fuzzing.
# A tool that is missing is named and skipped; everything else must pass.
# Usage: native/tests/run_sanitizers.sh [fuzz seconds per target, default 10]
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-10}
build=build
cores=$(nproc)
mkdir -p "$build"
python3 tests/vectors_header.py >"$build/vectors.h"
warnings="-std=c11 -Wall -Wextra -Wpedantic -Wconversion -Werror"
sanitize="-O1 -g -fno-omit-frame-pointer -fno-sanitize-recover=all"

have() { command -v "$1" >/dev/null 2>&1; }

# core NAME COMPILER FLAGS...: the core's objects, one compiler a processor at a time, in build/NAME/
core() {
    name=$1
    shift
    rm -rf "${build:?}/$name"
    mkdir "$build/$name"
    ls src/*.c | xargs -P "$cores" -I{} sh -c 'out=$1; shift; "$@" -c {} -o "$out/$(basename {} .c).o"' \
        sh "$build/$name" "$@" $warnings -Iinclude
}

# smoke NAME COMPILER FLAGS...: the core and its smoke test
smoke() {
    core "$@"
    name=$1
    shift
    "$@" $warnings -Iinclude -I"$build" "$build/$name"/*.o tests/*.c -lm -o "$build/smoke-$name"
}

for compiler in gcc clang; do
    if ! have $compiler; then
        echo "SKIPPED: no $compiler"
        continue
    fi
    echo "== $compiler: warnings are errors, ASan + UBSan"
    smoke $compiler-sanitized $compiler $sanitize -DCAS_PAIRS_WITH_CLANG -fsanitize=address,undefined
    smoke $compiler $compiler -O3
    "$build/smoke-$compiler-sanitized"
    "$build/smoke-$compiler"
done

if have aarch64-linux-gnu-gcc && have qemu-aarch64; then
    echo "== NEON under qemu-user"
    smoke arm aarch64-linux-gnu-gcc -O3 -static
    qemu-aarch64 "$build/smoke-arm"
else
    echo "SKIPPED: NEON, no aarch64-linux-gnu-gcc or no qemu-aarch64"
fi

if have clang && printf 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n){return d == 0 && n;}' |
    clang -x c -fsanitize=fuzzer - -o "$build/probe" 2>/dev/null; then
    core fuzzed clang $sanitize -DCAS_PAIRS_WITH_CLANG -fsanitize=fuzzer-no-link,address,undefined
    for target in fuzz/fuzz_*.c; do
        name=$(basename "$target" .c)
        clang $warnings $sanitize -fsanitize=fuzzer,address,undefined -Iinclude "$build/fuzzed"/*.o "$target" -lm \
            -o "$build/$name"
        mkdir -p "$build/corpus-$name"
        echo "$name"
    done >"$build/targets"
    echo "== $(wc -l <"$build/targets") fuzz targets, $seconds s each"
    # The output of one that finds nothing is noise; of one that finds something, all of it counts.
    xargs -P "$cores" -I{} sh -c '"$1/{}" -max_total_time="$2" -max_len=8192 -len_control=20 -print_final_stats=1 \
        "$1/corpus-{}" >"$1/{}.log" 2>&1 || { echo "{}: failed"; cat "$1/{}.log"; exit 255; }
        echo "{}: $(sed -n "s/^stat::number_of_executed_units: *//p" "$1/{}.log") executions"' \
        sh "$build" "$seconds" <"$build/targets"
else
    echo "SKIPPED: fuzzing, no clang with libFuzzer"
fi
echo "native: all that could run has passed"
