#!/bin/bash
# profile.sh [N [ROUNDS]]: where the CPU of N hosts goes, in milliseconds for each of them, by the programs that run: `ssh host true`, the second
# run, the first, and the one that brings the agent. `perf record` over the whole machine, so let nothing else run on it.
set -euo pipefail
. "$(dirname "$0")/env.sh"
cd "$BENCH_DIR"
n=${1:-40} rounds=${2:-5} hertz=5000
mkdir -p "$BENCH_WORK/cp"
./inventory.py "$n"

record() {
  perf record --quiet --all-cpus --event cpu-clock --freq "$hertz" --output "$BENCH_WORK/$1.perf.$2" -- "${@:3}" > /dev/null 2> "$BENCH_WORK/perf.log" \
    || { cat "$BENCH_WORK/perf.log" >&2; exit 1; }
}
for round in $(seq "$rounds"); do
  ./targets.sh reset "$n"
  export BENCH_SSH_OPTS='-o KexAlgorithms=curve25519-sha256'
  record true "$round" floor/floor.sh true "$n"
  record cold "$round" ./run-rollcall.sh "$n"
  ./targets.sh reset "$n"
  ./run-rollcall.sh "$n" --check > /dev/null 2>&1
  record first "$round" ./run-rollcall.sh "$n"
  record second "$round" ./run-rollcall.sh "$n"
done

# Idle time is nobody's, and that of `perf` is ours.
for what in true second first cold; do
  for file in "$BENCH_WORK/$what".perf.*; do perf script --input "$file" --fields comm,tid 2> /dev/null; done \
    | awk -v what="$what" -v scale="$((hertz * n * rounds))" '
      { sub(/ +[0-9]+ *$/, ""); sub(/^ +/, "") }
      $0 == "swapper" || $0 == "perf" { next }
      { all++; count[$0]++ }
      END {
        printf "%s: %.1f ms\n", what, all * 1000 / scale
        for (name in count) if (count[name] * 1000 / scale >= 0.3) printf "  %5.1f  %s\n", count[name] * 1000 / scale, name | "sort -rn"
      }'
done
