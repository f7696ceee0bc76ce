#!/usr/bin/env python3
"""ratios.py FILE...: the product against floors and peers, and against its targets.

A ratio is taken within a round (the tools take turns, so that what else the machine does hits all alike); the figure is the
median of the rounds, with the range. `CPU` is the same of all CPU seconds, controller and targets together: on a machine
that does everything itself it is the floor under the wall time, and other work on the machine moves it less.
"""
import json, statistics, sys

# ours, run, other, run of the other, hosts, tag, at most (<) or at least (>)
TARGETS = [
    ("rollcall", "first", "ssh-true-c25519", None, 40, "", "<", 1.4),
    ("rollcall", "second", "ssh-true-c25519", None, 40, "", "<", 0.8),
    ("rollcall-cold", "first", "ssh-true-c25519", None, 40, "", "<", 3.0),
    ("rollcall", "first", "ansible-tuned", "first", 40, "", ">", 100),
    ("rollcall", "second", "ansible-tuned", "second", 40, "", ">", 100),
    ("rollcall", "first", "ansible-mitogen", "first", 40, "", ">", 25),
    ("rollcall", "first", "pyinfra", "first", 40, "", ">", 12),
    ("rollcall", "first", "ssh-true-c25519", None, 1, "@30ms", "<", 1.3),
    ("rollcall", "second", "ssh-true-c25519", None, 1, "@30ms", "<", 1.3),
]


def rounds(rows, tool, run, n, tag, value):
    """Round -> value; with no run given, the mean of both."""
    found = {}
    for r in rows:
        if r["tool"] == tool + tag and r["n"] == n and run in (None, r["run"]) and r["ok"]:
            found.setdefault(r["round"], []).append(value(r))
    return {k: statistics.mean(v) for k, v in found.items()}


def ratio(rows, target, value):
    ours, run, other, other_run, n, tag, kind, _ = target
    a = rounds(rows, ours, run, n, tag, value)
    b = rounds(rows, other, other_run, n, tag, value)
    pairs = [(a[k], b[k]) for k in sorted(a) if k in b and a[k] and b[k]]
    return [(x / y if kind == "<" else y / x) for x, y in pairs]


def main():
    rows = [json.loads(line) for path in sys.argv[1:] for line in open(path)]
    for r in rows:
        if not r["ok"]:
            print(f"a run failed and is left out: {r['tool']}, {r['n']} hosts, {r['run']} run", file=sys.stderr)
    print("| what | hosts | target | wall, median (range) | CPU, median | rounds | |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for target in TARGETS:
        ours, run, other, _, n, tag, kind, limit = target
        wall = ratio(rows, target, lambda r: r["wall"])
        if not wall:
            continue
        cpu = statistics.median(ratio(rows, target, lambda r: r["ctl_cpu"] + r["tgt_cpu"]))
        mid = statistics.median(wall)
        holds = lambda value: value <= limit if kind == "<" else value >= limit
        # With latency waiting decides; without it a busy machine favours whoever starts more processes.
        agree = bool(tag) or holds(cpu) == holds(mid)
        verdict = ("met" if holds(mid) else "missed") if agree else "open: wall and CPU disagree"
        sign = "≤" if kind == "<" else "≥"
        word = "of" if kind == "<" else "faster than"
        print(f"| {ours}, {run} run, {word} {other}{tag} | {n} | {sign} {limit:g} × | **{mid:.2f} ×** ({min(wall):.2f}–{max(wall):.2f}) "
              f"| {cpu:.2f} × | {len(wall)} | {verdict} |")
    for run in ("first", "second"):
        mine = [r for r in rows if r["tool"] == "rollcall" and r["n"] == 40 and r["run"] == run and r["ok"]]
        if mine:
            cpu, memory = (statistics.median(r[k] for r in mine) for k in ("ctl_cpu", "maxrss"))
            print(f"| controller, {run} run: CPU s, memory | 40 | ≤ 0.5 s, ≤ 50 MiB | **{cpu:.2f} s**, **{memory:.0f} MiB** | | {len(mine)} | "
                  f"{'met' if cpu <= 0.5 and memory <= 50 else 'missed'} |")
    many = sorted({r["n"] for r in rows if r["tool"] == "rollcall" and r["n"] > 40})
    for n in many:
        for run in ("first", "second"):
            big = [r for r in rows if r["tool"] == "rollcall" and r["n"] == n and r["run"] == run and r["ok"]]
            small = [r for r in rows if r["tool"] == "rollcall" and r["n"] == 40 and r["run"] == run and r["ok"]]
            if big and small:
                wall = statistics.median(r["wall"] for r in big) / statistics.median(r["wall"] for r in small) / (n / 40)
                memory, limit = statistics.median(r["maxrss"] for r in big), 50 + 0.5 * (n - 40)
                print(f"| rollcall, {run} run, of {n / 40:g} × that of 40 hosts; memory | {n} | ≤ 1.2 ×, ≤ {limit:.0f} MiB | "
                      f"**{wall:.2f} ×**, **{memory:.0f} MiB** | | {len(big)} | {'met' if wall <= 1.2 and memory <= limit else 'missed'} |")


main()
