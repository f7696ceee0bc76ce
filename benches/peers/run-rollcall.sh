#!/bin/bash
# run-rollcall.sh N [args]
# The product as it is installed: host keys checked, lock, fsync, redaction; nothing switched off. The agent lies beside
# the controller ($ROLLCALL_BIN, or the PATH).
. "$(dirname "$0")/env.sh"
n=$1; shift
bin=${ROLLCALL_BIN:-$(dirname "$(command -v controller)")}
cd "$BENCH_WORK/inv/rollcall"
export XDG_CACHE_HOME=$BENCH_WORK/xdg XDG_STATE_HOME=$BENCH_WORK/xdg
exec "$bin/controller" run "$BENCH_DIR/rollcall/site.yaml" -i "${BENCH_INV:-$n}.yaml" "$@"
