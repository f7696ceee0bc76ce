"""choose.py SOURCE PATTERN...: the hosts that Ansible chooses for each pattern as a limit, as JSON."""

import json
import sys

from ansible.inventory.manager import InventoryManager
from ansible.parsing.dataloader import DataLoader


def main():
    inventory = InventoryManager(loader=DataLoader(), sources=[sys.argv[1]])
    chosen = {}
    for pattern in sys.argv[2:]:
        inventory.clear_caches()
        inventory._pattern_cache = {}
        try:
            inventory.subset(pattern)
            chosen[pattern] = sorted(host.name for host in inventory.get_hosts("all"))
        except Exception:  # an unusable pattern chooses nobody
            chosen[pattern] = []
    print(json.dumps(chosen))


if __name__ == "__main__":
    main()
