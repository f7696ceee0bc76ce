#!/bin/sh
# Makes the environment of parity.py in the user's cache folder, once, and prints its Python.
set -eu
core=2.19.14
package=12.3.0
cache=${XDG_CACHE_HOME:-$HOME/.cache}/rollcall
home=$cache/ansible-$core-$package
mkdir -p "$cache"
# One at a time; a half-made one (no file `done`) is made anew.
exec 9>"$home.lock"
flock 9
if [ ! -e "$home/done" ]; then
    rm -rf "$home"
    python3 -m venv "$home" >&2
    "$home/bin/pip" install -q "ansible-core==$core" boto3 'moto[ec2,server]==5.2.1' >&2
    # Of the large package only the collection is needed.
    "$home/bin/pip" download -q --no-deps "ansible==$package" -d "$home/download" >&2
    "$home/bin/python" - "$home"/download/ansible-*.whl "$home/collections" >&2 <<'PYTHON'
import sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel:
    wheel.extractall(sys.argv[2], [n for n in wheel.namelist() if n.startswith("ansible_collections/amazon/aws/")])
PYTHON
    rm -rf "$home/download"
    touch "$home/done"
fi
echo "$home/bin/python"
