# Sourced by every script here. BENCH_WORK is the only thing you must set: a
# scratch directory (keys, known_hosts, target roots, results, venvs live there).
: "${BENCH_WORK:?set BENCH_WORK to a scratch directory}"
BENCH_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Target i is $BENCH_NET.(i+1), one sshd each, loopback only; the 201st is $BENCH_NET's next neighbour's .2.
: "${BENCH_NET:=127.7.0}"
: "${BENCH_PORT:=22922}"
# Port of the optional per-target latency proxy (see delayproxy/).
: "${BENCH_DELAY_PORT:=22923}"
: "${BENCH_MAX:=40}"
export BENCH_WORK BENCH_DIR BENCH_NET BENCH_PORT BENCH_DELAY_PORT BENCH_MAX
addr() { echo "${BENCH_NET%.*}.$(( ${BENCH_NET##*.} + ($1 - 1) / 200 )).$(( ($1 - 1) % 200 + 2 ))"; }   # addr 1 -> 127.7.0.2
