#!/usr/bin/env python3
"""inventory.py N [PORT]: writes inv/N.ini (Ansible), inv/N.py (pyinfra) and inv/rollcall/N.yaml with its project."""
import os, sys
n = int(sys.argv[1])
port = sys.argv[2] if len(sys.argv) > 2 else os.environ.get("BENCH_PORT", "22922")
net = os.environ.get("BENCH_NET", "127.7.0")
work = os.environ["BENCH_WORK"]
d = os.path.join(work, "inv"); os.makedirs(d, exist_ok=True)
tag = str(n) + ("" if port == os.environ.get("BENCH_PORT", "22922") else "-delay")
low, first = net.rsplit(".", 1)
hosts = [f"{low}.{int(first) + i // 200}.{i % 200 + 2}" for i in range(n)]
with open(f"{d}/{tag}.ini", "w") as f:
    f.write("[bench]\n" + "".join(f"{h} ansible_port={port}\n" for h in hosts))
with open(f"{d}/{tag}.py", "w") as f:
    f.write(f"bench = [(h, {{'ssh_port': {port}}}) for h in {hosts!r}]\n")
here = os.path.dirname(os.path.abspath(__file__))
os.makedirs(f"{d}/rollcall", exist_ok=True)
with open(f"{d}/rollcall/{tag}.yaml", "w") as f:
    f.write("bench:\n  hosts:\n" + "".join(f"    {h}: {{ ansible_port: {port} }}\n" for h in hosts))
with open(f"{d}/rollcall/rollcall.yaml", "w") as f:
    f.write(f"inventory: {tag}.yaml\nroles: [{here}/ansible/roles]\nssh:\n  config: {work}/keys/ssh_config\n")
