#!/bin/sh
# Prove the C core without Python: strict warnings, ASan + UBSan, 64-bit Arm under qemu, and short fuzzing.
# A tool that is missing is named and skipped; everything else must pass.
# Usage: native/tests/run_sanitizers.sh [fuzz seconds per target, default 10]
set -eu
cd "$(dirname "$0")/.."
seconds=${1:-10}
build=build
mkdir -p "$build"
python3 tests/vectors_header.py >"$build/vectors.h"
warnings="-std=c11 -Wall -Wextra -Wpedantic -Wconversion -Werror"
sources="$(ls src/*.c)"

have() { command -v "$1" >/dev/null 2>&1; }

for compiler in gcc clang; do
    if ! have $compiler; then
        echo "SKIPPED: no $compiler"
        continue
    fi
    echo "== $compiler: warnings are errors, ASan + UBSan"
    $compiler $warnings -O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all \
        -Iinclude -I"$build" $sources tests/smoke.c -lm -o "$build/smoke-$compiler"
    "$build/smoke-$compiler"
    $compiler $warnings -O3 -Iinclude -I"$build" $sources tests/smoke.c -lm -o "$build/smoke-$compiler-O3"
    "$build/smoke-$compiler-O3"
done

if have aarch64-linux-gnu-gcc && have qemu-aarch64; then
    echo "== NEON under qemu-user"
    aarch64-linux-gnu-gcc $warnings -O3 -static -Iinclude -I"$build" $sources tests/smoke.c -lm -o "$build/smoke-arm"
    qemu-aarch64 "$build/smoke-arm"
else
    echo "SKIPPED: NEON, no aarch64-linux-gnu-gcc or no qemu-aarch64"
fi

if have clang && printf 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n){return d == 0 && n;}' |
    clang -x c -fsanitize=fuzzer - -o "$build/probe" 2>/dev/null; then
    for target in fuzz/fuzz_*.c; do
        name=$(basename "$target" .c)
        echo "== $name: $seconds s"
        clang $warnings -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Iinclude $sources \
            "$target" -lm -o "$build/$name"
        mkdir -p "$build/corpus-$name"
        "$build/$name" -max_total_time="$seconds" -max_len=8192 -len_control=20 -print_final_stats=0 -verbosity=0 \
            "$build/corpus-$name"
    done
else
    echo "SKIPPED: fuzzing, no clang with libFuzzer"
fi
echo "native: all that could run has passed"
