#!/bin/sh
# Serves a SoftHSM2 token on a Unix socket with the tree's p11-kit, in the foreground.
#
#   SOFTHSM2_CONF=softhsm2.conf tests/p11kit/run-server.sh TREE SOCKET [TOKEN-URI]
#
# TREE is what trixie-tree.sh printed. SOCKET is an absolute path of at most 107 bytes; the server
# is ready once it exists. TOKEN-URI (RFC 7512) defaults to "pkcs11:", every token. The process
# started becomes the server by exec(2): its process id is the server's, and SIGTERM ends it. Each
# connection gets a child process (p11-kit-remote) with a SoftHSM of its own, which ends with the
# connection: that is where session objects live.
set -eu
if [ $# -lt 2 ] || [ $# -gt 3 ]; then
    echo "usage: SOFTHSM2_CONF=FILE run-server.sh TREE SOCKET [TOKEN-URI]" >&2
    exit 2
fi
: "${SOFTHSM2_CONF:?set it to the softhsm2.conf of the token to serve}"
tree=$(CDPATH='' cd -- "$1" && pwd)
[ ! -S "$2" ] || rm -f -- "$2" # a server that was killed leaves its socket, and bind(2) refuses a name that exists
export P11_KIT_PRIVATEDIR="$tree/private" P11_KIT_NO_USER_CONFIG=1
exec "$tree/private/p11-kit-server" --foreground --name "$2" --provider "$tree/libsofthsm2.so" "${3:-pkcs11:}"
