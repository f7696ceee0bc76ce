#!/usr/bin/env python3
"""bench.py [--rounds R] [--sizes 1,10,40] [--tools a,b,...] [--out FILE] | --report FILE

For every tool and size: reset the targets, first run (changes), second run (none),
checking the state after each. One JSON line a run; --report prints the medians.

Per run:
  wall     seconds from start to exit
  ctl_cpu  CPU seconds of the controller side (tool, its forks, its ssh clients)
  tgt_cpu  CPU seconds of the targets (sshd and all it starts)
  other    CPU seconds everything else on the machine used meanwhile (noise)
  maxrss   MiB, peak of the largest single process of the tool
  rss      (with --mem) peak of the summed PSS of all controller processes, MiB,
           sampled twice a second; rss1 is the largest single process
A run is clean when the rest of the machine used under 0.15 of a core; the table is of
the clean runs where there are 2, else of all of them, marked ~ (the wall time is then
too high; the CPU seconds hold).
CPU is told apart by two cgroup v1 cpuacct groups; run as root.
Tools: any of TOOLS below, or NAME=COMMAND with {n} for the size.
"""
import argparse, json, os, statistics, subprocess, sys, time
D = os.path.dirname(os.path.abspath(__file__))
CG = "/sys/fs/cgroup/cpuacct"
TOOLS = {
    "rollcall": "./run-rollcall.sh {n}",
    "rollcall-cold": "./run-rollcall.sh {n}",
    "ssh-true-c25519": "env BENCH_SSH_OPTS='-o KexAlgorithms=curve25519-sha256' floor/floor.sh true {n}",
    "ansible-default": "./run-ansible.sh default {n}",
    "ansible-facts-tuned": "./run-ansible.sh facts-tuned {n}",
    "ansible-tuned": "./run-ansible.sh tuned {n}",
    "ansible-mitogen": "./run-ansible.sh mitogen {n}",
    "pyinfra": "./run-pyinfra.sh {n}",
    "ssh-true": "floor/floor.sh true {n}",
    "ssh-true-mux": "floor/floor.sh mux {n}",
    "sh-role": "floor/floor.sh role {n}",
    "sh-role-mux": "floor/floor.sh role-mux {n}",
    "push-7MB": "floor/floor.sh push {n}",
    "check-7MB": "floor/floor.sh check {n}",
}
ROLE = lambda t: not t.startswith(("ssh-true", "push-7MB", "check-7MB"))
# Carried out before the first run, unmeasured: a look without a change puts the agent there. Where all targets share one
# folder of programs, through one of them: forty pushes into one folder are in each other's way.
PREPARE = {"rollcall": "./run-rollcall.sh {n} --check" + (" --limit 127.7.0.2" if os.environ.get("BENCH_SHARED_LOCAL") else "")}

def rd(p):
    with open(p) as f: return f.read()
def cg(name): return int(rd(f"{CG}/{name}/cpuacct.usage")) / 1e9
def busy():
    v = [int(x) for x in rd("/proc/stat").split("\n")[0].split()[1:]]
    return (sum(v[:3]) + sum(v[5:7])) / 100
def procs(): return [int(x) for x in rd(f"{CG}/bench-ctl/cgroup.procs").split()]
def sh(cmd, **k): return subprocess.run(cmd, shell=True, cwd=D, **k)
def drop_masters():
    """Ends what a run left behind in the controller's group (ssh masters)."""
    for p in procs():
        try: os.kill(p, 9)
        except ProcessLookupError: pass
    sh('rm -rf "$BENCH_WORK/cp"; mkdir -p "$BENCH_WORK/cp"')
def quiet(limit=float(os.environ.get("BENCH_QUIET", "60"))):
    """Waits, at most limit seconds, for the rest of the machine to be quiet."""
    t0 = time.time()
    while time.time() - t0 < limit:
        b = busy(); time.sleep(1)
        if busy() - b < 0.15: return
def pss():
    tot = one = 0
    for p in procs():
        try: v = int(next(l for l in rd(f"/proc/{p}/smaps_rollup").split("\n") if l.startswith("Pss:")).split()[1])
        except (OSError, StopIteration): continue
        tot += v; one = max(one, v)
    return tot / 1024, one / 1024
def run(cmd, mem):
    log = open(os.path.join(os.environ["BENCH_WORK"], "last.log"), "w")
    c0, t0, b0, w0 = cg("bench-ctl"), cg("bench-targets"), busy(), time.monotonic()
    def enter():
        with open(f"{CG}/bench-ctl/cgroup.procs", "w") as f: f.write("0")
    p = subprocess.Popen(["bash", "-c", "exec " + cmd], cwd=D, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, preexec_fn=enter)
    peak = peak1 = 0
    if mem:
        while os.waitid(os.P_PID, p.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            a, b = pss(); peak, peak1 = max(peak, a), max(peak1, b); time.sleep(0.5)
    _, status, used = os.wait4(p.pid, 0)
    rc = p.returncode = os.waitstatus_to_exitcode(status)
    w = time.monotonic() - w0
    r = dict(wall=w, maxrss=used.ru_maxrss / 1024, ctl_cpu=cg("bench-ctl") - c0, tgt_cpu=cg("bench-targets") - t0, rc=rc)
    r["other"] = busy() - b0 - r["ctl_cpu"] - r["tgt_cpu"]
    if mem: r["rss"], r["rss1"] = peak, peak1
    return {k: round(v, 3) for k, v in r.items()}
def med(rows, k): return statistics.median(r[k] for r in rows)
def report(path):
    rows = [json.loads(l) for l in open(path)]
    g, mem = {}, {}
    for r in rows:
        if r["rc"] or not r["ok"]: print("FAILED:", r); continue
        for d in ([g, mem] if "rss" in r else [g]): d.setdefault((r["tool"], r["n"], r["run"]), []).append(r)
    order = list(TOOLS)
    print("| tool | targets | run | wall s (min–max) | controller CPU s | targets' CPU s | other CPU s | largest process MiB | controller peak PSS MiB (largest process) | runs |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for k in sorted(g, key=lambda k: (k[1], order.index(k[0].split("@")[0]) if k[0].split("@")[0] in TOOLS else 99, k[2])):
        v = g[k]; m = mem.get(k)
        clean = [r for r in v if r["other"] <= 0.15 * r["wall"] + 0.05]
        mark = "" if len(clean) >= min(2, len(v)) else "~"
        v = clean if not mark else v
        ms = f'{med(m, "rss"):.0f} ({med(m, "rss1"):.0f})' if m else ""
        print(f'| {k[0]} | {k[1]} | {k[2]} | {mark}**{med(v,"wall"):.2f}** ({min(r["wall"] for r in v):.2f}–{max(r["wall"] for r in v):.2f}) | {med(v,"ctl_cpu"):.2f} | {med(v,"tgt_cpu"):.2f} | {med(v,"other"):.1f} | {med(v,"maxrss"):.0f} | {ms} | {len(v)} |')
def main():
    a = argparse.ArgumentParser(); a.add_argument("--rounds", type=int, default=3)
    a.add_argument("--sizes", default="1,10,40"); a.add_argument("--tools", default=",".join(TOOLS))
    a.add_argument("--out", default=os.path.join(os.environ.get("BENCH_WORK", "."), "results.jsonl"))
    a.add_argument("--mem", action="store_true"); a.add_argument("--tag", default=""); a.add_argument("--report")
    o = a.parse_args()
    if o.report: return report(o.report)
    for g in ("bench-ctl", "bench-targets"): os.makedirs(f"{CG}/{g}", exist_ok=True)
    tools = dict((t.split("=", 1) if "=" in t else (t, TOOLS[t])) for t in o.tools.split(","))
    for rnd in range(o.rounds):
        for n in map(int, o.sizes.split(",")):
            sh(f"./inventory.py {n}", check=True)
            for t, cmd in tools.items():
                drop_masters()
                if t != "check-7MB": sh(f"./targets.sh reset {n}", check=True)
                if t.endswith("-mux"): sh(f"floor/floor.sh mux-open {n}", stdout=subprocess.DEVNULL, preexec_fn=lambda: open(f"{CG}/bench-ctl/cgroup.procs", "w").write("0"))
                if t in PREPARE: sh(PREPARE[t].format(n=n), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
                for which in ("first", "second"):
                    quiet()
                    r = run(cmd.format(n=n), o.mem)
                    ok = r["rc"] == 0 and (not ROLE(t) or sh(f"./verify.sh {n}", stdout=subprocess.DEVNULL).returncode == 0)
                    r = dict(tool=t + o.tag, n=n, run=which, round=rnd, ok=ok, **r)
                    print(json.dumps(r), flush=True)
                    with open(o.out, "a") as f: f.write(json.dumps(r) + "\n")
                    if not t.endswith("-mux"): drop_masters()
    drop_masters()
main()
