#!/bin/sh
# Runs a program against a token served by run-server.sh.
#
#   tests/p11kit/run-client.sh TREE SOCKET -- PROGRAM [ARG...]
#
# The program must load $PKCS11_MODULE (TREE/p11-kit-client.so, set here), which finds the server by
# P11_KIT_SERVER_ADDRESS. It runs with the C library that the module needs, and the process id
# stays. /proc/PID/exe then names that library's loader, not the program.
set -eu
if [ $# -lt 4 ] || [ "$3" != -- ]; then
    echo "usage: run-client.sh TREE SOCKET -- PROGRAM [ARG...]" >&2
    exit 2
fi
tree=$(CDPATH='' cd -- "$1" && pwd)
export PKCS11_MODULE="$tree/p11-kit-client.so" P11_KIT_SERVER_ADDRESS="unix:path=$2" P11_KIT_NO_USER_CONFIG=1
shift 3
exec "$tree/exec" "$@"
