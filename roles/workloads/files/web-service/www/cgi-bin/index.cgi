#!/bin/busybox sh
# Which instance answers: Nomad tells each its allocation.
printf 'Content-Type: application/json\r\n\r\n{"alloc_id":"%s","status":"ok"}\n' "$NOMAD_ALLOC_ID"
