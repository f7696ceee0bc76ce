"""Ansible and `controller` read the same aws_ec2 files: groups, children, hosts and variables must be the same.

parity.py CONTROLLER FILE...: starts an EC2 API on loopback with the fleet of fleet.py, runs both programs on each file,
and prints what differs; exit code 1 if anything does. Runs in the environment that prepare.sh makes.
"""

import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

HERE = pathlib.Path(__file__).resolve().parent
WRAPPER = HERE.parent.parent / "examples" / "ansible-inventory" / "rollcall-inventory.sh"
BIN = pathlib.Path(sys.executable).parent


def unwrapped(value):
    """Text as text: Ansible marks what it does not trust."""
    if isinstance(value, dict):
        if set(value) == {"__ansible_unsafe"}:
            return value["__ansible_unsafe"]
        return {key: unwrapped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [unwrapped(item) for item in value]
    return value


def run(command, environment):
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr}")
    return done.stdout, done.stderr


def shape(listing):
    groups = {
        name: (sorted(group.get("hosts", [])), group.get("children", []))
        for name, group in listing.items() if name != "_meta"
    }
    hostvars = unwrapped(listing["_meta"]["hostvars"])
    return groups, hostvars


def differences(theirs, ours):
    (their_groups, their_vars), (our_groups, our_vars) = shape(theirs), shape(ours)
    for name in sorted(their_groups.keys() | our_groups.keys()):
        if their_groups.get(name) != our_groups.get(name):
            yield f"group {name}: Ansible {their_groups.get(name)}, controller {our_groups.get(name)}"
    for host in sorted(their_vars.keys() | our_vars.keys()):
        one, other = their_vars.get(host, {}), our_vars.get(host, {})
        for name in sorted(one.keys() | other.keys()):
            if one.get(name) != other.get(name):
                yield f"{host}: {name}: Ansible {one.get(name)!r}, controller {other.get(name)!r}"


def graph_hosts(text):
    """The tree without the order of siblings: groups two levels down have none in Ansible."""
    return sorted(text.split("\n"))


def compare(controller, path, environment):
    base = ["-i", str(path)]
    theirs, _ = run([BIN / "ansible-inventory", *base, "--list"], environment)
    ours, _ = run([controller, "inventory", *base, "--list"], environment)
    found = list(differences(json.loads(theirs), json.loads(ours)))
    theirs, _ = run([BIN / "ansible-inventory", *base, "--graph"], environment)
    ours, _ = run([controller, "inventory", *base, "--graph"], environment)
    if theirs != ours:
        found.append(f"graph:\n--- Ansible\n{theirs}\n--- controller\n{ours}")
    return found


def wrapper(controller, path, environment):
    """Ansible takes our listing as an inventory script, and a tag that looks like an expression stays text."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "controller").symlink_to(pathlib.Path(controller).resolve())
        environment = dict(environment, PATH=f"{folder}:{environment['PATH']}", ROLLCALL_INVENTORY=str(path))
        by_us, _ = run([BIN / "ansible-inventory", "-i", WRAPPER, "--list"], environment)
        by_them, _ = run([BIN / "ansible-inventory", "-i", path, "--list"], environment)
        yield from differences(json.loads(by_them), json.loads(by_us))
        shown, _ = run([BIN / "ansible", "-i", WRAPPER, "templated", "-m", "debug", "-a", "var=tags.Note"], environment)
        if "{{ 1 + 1 }} {% raw %}" not in shown:
            yield f"a tag was taken for an expression: {shown}"


# Subscripts below groups of groups are left out: Ansible's order there differs from run to run.
PATTERNS = """all * web web-1 web:db web,db backend:!web !web:backend !web !web-1 &db backend:&db
backend:&web:!web-3 backend:!web:&prod web[0] web[-1] web[1:2] web[1-2] web[1:] web[1:99] web[2:1] web[99] db[0]:web[0] ~web-(1|3)
~.*-1 ~(web|db)-1:!web web? web-? web-[12] web-[!1] w*:!*-1 *.example.com lone.example.com prod,!db WEB web-0* pro? [wd]*
db-a,db-b db-a:db-b 10.0.0.9 2001:db8::9 10.0.0.* both both:&web !both all:!all nobody ungrouped""".split()


def patterns(controller, environment):
    """What each pattern chooses. Where Ansible warns and goes on with nothing, we refuse."""
    source = HERE / "patterns.yaml"
    asked, _ = run([sys.executable, HERE / "choose.py", source, *PATTERNS], environment)
    for pattern, theirs in json.loads(asked).items():
        done = subprocess.run(
            [controller, "inventory", "-i", source, "--list", "--limit", pattern],
            env=environment, capture_output=True, text=True, timeout=60,
        )
        ours = []
        if done.returncode == 0:
            ours = sorted(json.loads(done.stdout)["_meta"]["hostvars"])
        elif "error: " not in done.stderr:
            yield f"{pattern}: {done.stderr}"
        if ours != theirs:
            yield f"{pattern}: Ansible {theirs}, controller {ours} {done.stderr}"


def start_api(environment):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [BIN / "moto_server", "-H", "127.0.0.1", "-p", str(port)], env=environment,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    for _ in range(300):
        try:
            urllib.request.urlopen(url + "/moto-api/", timeout=1).close()
            return server, url
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.1)
    server.kill()
    raise SystemExit("the EC2 API does not start")


def main():
    controller, files = sys.argv[1], [pathlib.Path(name).resolve() for name in sys.argv[2:]]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "ANSIBLE_"))}
    environment.update(
        AWS_ACCESS_KEY_ID="parity", AWS_SECRET_ACCESS_KEY="parity", AWS_REGION="us-west-2",
        AWS_DEFAULT_REGION="us-west-2", AWS_EC2_METADATA_DISABLED="true", LC_ALL="C.UTF-8",
        ANSIBLE_COLLECTIONS_PATH=str(BIN.parent / "collections"), ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED="true",
        ANSIBLE_LOCALHOST_WARNING="false", ANSIBLE_DEPRECATION_WARNINGS="false", ROLLCALL_LAB_KEY="/key",
    )
    server, environment["AWS_ENDPOINT_URL"] = start_api(environment)
    failed = 0
    try:
        subprocess.run([sys.executable, HERE / "fleet.py"], env=environment, check=True)
        for path in files:
            found = compare(controller, path, environment)
            print(f"{'differs' if found else 'same   '}  {path.parent.name}/{path.name}")
            print("".join(f"    {line}\n" for line in found), end="")
            failed += bool(found)
        plain = HERE / "inventories" / "plain_aws_ec2.yaml"
        found = list(wrapper(controller, plain, environment))
        print(f"{'differs' if found else 'same   '}  through the inventory script")
        print("".join(f"    {line}\n" for line in found), end="")
        failed += bool(found)
        found = list(patterns(controller, environment))
        print(f"{'differs' if found else 'same   '}  {len(PATTERNS)} patterns")
        print("".join(f"    {line}\n" for line in found), end="")
        failed += bool(found)
    finally:
        server.kill()
        server.wait()
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
