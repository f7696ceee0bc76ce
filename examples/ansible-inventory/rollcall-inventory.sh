#!/bin/sh
# Ansible's inventory script protocol: --list, or --host NAME. ROLLCALL_INVENTORY names the source.
exec controller inventory ${ROLLCALL_INVENTORY:+-i "$ROLLCALL_INVENTORY"} "${@:---list}"
