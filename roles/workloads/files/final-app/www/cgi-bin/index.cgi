#!/bin/busybox sh
# Says what it is told to say.
printf 'Content-Type: text/plain; charset=utf-8\r\n\r\n%s\n' "${TEXT:-Nomad, Docker and the network between them work.}"
