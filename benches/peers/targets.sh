#!/bin/bash
# targets.sh start [N] | reset [N] | stop | status
#
# Each target is a private root (own /etc, /opt, /root, /tmp, /var, so own users
# and groups; host /usr mounted read-only) in its own mount, PID and UTS
# namespaces, running one sshd on a loopback address. Nothing leaves 127/8.
# BENCH_SHARED_LOCAL=DIR: one /usr/local for all (a thousand copies of an agent do not fit into memory).
set -euo pipefail
. "$(dirname "$0")/env.sh"
H=$BENCH_WORK/hosts; K=$BENCH_WORK/keys; P=$BENCH_WORK/pids
mkdir -p "$H" "$K" "$P" ${BENCH_SHARED_LOCAL:+"$BENCH_SHARED_LOCAL"}

keys() {
  [ -f "$K/id" ] || ssh-keygen -q -t ed25519 -N '' -C bench -f "$K/id"
  [ -f "$K/host" ] || ssh-keygen -q -t ed25519 -N '' -C host -f "$K/host"
  cp "$K/id.pub" "$K/authorized_keys"
  : > "$K/known_hosts"
  local i pub; pub=$(cut -d' ' -f1,2 "$K/host.pub")
  for i in $(seq 1 "$BENCH_MAX"); do
    echo "[$(addr $i)]:$BENCH_PORT $pub"; echo "[$(addr $i)]:$BENCH_DELAY_PORT $pub"
  done > "$K/known_hosts"
  # One ssh_config for every tool, so none gets a connection setting the others lack.
  cat > "$K/ssh_config" <<X
Host ${BENCH_NET%.*}.*
  User root
  Port $BENCH_PORT
  IdentityFile $K/id
  IdentitiesOnly yes
  UserKnownHostsFile $K/known_hosts
  StrictHostKeyChecking yes
  BatchMode yes
  LogLevel ERROR
X
}

base() {   # the /etc every target starts from
  local b=$BENCH_WORK/base; [ -d "$b/etc" ] && return
  mkdir -p "$b"; cp -a /etc "$b/etc.tmp"
  sed -i '/^\(consul\|nomad\|docker\)/d' "$b/etc.tmp/passwd" "$b/etc.tmp/group" "$b/etc.tmp/shadow" "$b/etc.tmp/gshadow"
  mv "$b/etc.tmp" "$b/etc"
}

start1() {
  local i=$1 a r; a=$(addr "$i"); r=$H/$a
  [ -f "$P/$a" ] && return
  rm -rf "$r"; mkdir -p "$r"/{usr,proc,dev,run/sshd,root,home,tmp,var/tmp,var/lib,var/log,opt,srv,mnt}
  chmod 700 "$r/root"; chmod 1777 "$r/tmp" "$r/var/tmp"
  for l in bin sbin lib lib64; do ln -s usr/$l "$r/$l"; done
  # Linked, as everything here replaces files instead of writing into them; but for what account tools and appending shells write.
  cp -al "$BENCH_WORK/base/etc" "$r/etc"
  rm -f "$r"/etc/{.pwd.lock,passwd*,group*,shadow*,gshadow*,subuid*,subgid*}; rm -rf "$r/etc/security"
  cp -a "$BENCH_WORK"/base/etc/{passwd,group,shadow,gshadow,subuid,subgid,security} "$r/etc/"
  cp "$K/authorized_keys" "$r/etc/ssh/bench_authorized_keys"
  cp "$K/host" "$r/etc/ssh/bench_host"; chmod 600 "$r/etc/ssh/bench_host"
  cat > "$r/etc/ssh/bench_sshd_config" <<X
ListenAddress $a:$BENCH_PORT
HostKey /etc/ssh/bench_host
AuthorizedKeysFile /etc/ssh/bench_authorized_keys
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
StrictModes no
PidFile none
MaxStartups 200
MaxSessions 100
Subsystem sftp internal-sftp
${BENCH_SSHD_EXTRA:-}
X
  # own cpu accounting group when cgroup v1 cpuacct is there, so that the
  # targets' CPU can be told from the controller's on this one machine
  setsid unshare --mount --uts --pid --fork --kill-child bash -c '
    set -e
    for f in /sys/fs/cgroup/cpuacct/bench-targets/cgroup.procs; do
      [ -w "$f" ] && echo 0 > "$f"; done || true
    r=$1; a=$2; n=$3; shared=$4
    mount --make-rprivate /
    mount --bind /usr "$r/usr"; mount -o remount,ro,bind "$r/usr"
    if [ -n "$shared" ]; then mount --bind "$shared" "$r/usr/local"; else
      mount -t tmpfs none "$r/usr/local" -o size=256m,mode=755; fi
    mkdir -p "$r/usr/local/bin" "$r/usr/local/sbin"
    mount -t proc proc "$r/proc"
    mount --rbind /dev "$r/dev"
    hostname "node$n"; echo "node$n" > "$r/etc/hostname"
    exec chroot "$r" /usr/sbin/sshd -D -e -f /etc/ssh/bench_sshd_config
  ' _ "$r" "$a" "$i" "${BENCH_SHARED_LOCAL:-}" </dev/null >>"$BENCH_WORK/targets.log" 2>&1 &
  echo $! > "$P/$a"
}

stop1() {
  local a=$1 pid; [ -f "$P/$a" ] || return 0
  pid=$(cat "$P/$a"); rm -f "$P/$a"
  kill -9 "$pid" 2>/dev/null || true   # unshare ignores TERM; --kill-child takes the PID namespace with it
  for _ in $(seq 100); do readlink "/proc/$pid/exe" >/dev/null 2>&1 || break; sleep 0.02; done   # gone, or a zombie
}

stopall() { local f; for f in "$P"/*; do if [ -f "$f" ]; then stop1 "$(basename "$f")"; fi; done; }

wait_up() {
  local i
  for i in $(seq 1 "$1"); do
    for _ in $(seq 200); do
      (exec 3<>"/dev/tcp/$(addr $i)/$BENCH_PORT") 2>/dev/null && break; sleep 0.05
    done
  done
}

case "${1:-}" in
  start|reset)
    n=${2:-$BENCH_MAX}; [ -f "$K/known_hosts" ] || keys; base
    mkdir -p /sys/fs/cgroup/cpuacct/bench-targets 2>/dev/null || true
    if [ "$1" = reset ]; then stopall; fi
    for i in $(seq 1 "$n"); do start1 "$i"; done; wait_up "$n" ;;
  stop) stopall ;;
  status) ls "$P" | wc -l ;;
  *) sed -n 2,3p "$0"; exit 2 ;;
esac
