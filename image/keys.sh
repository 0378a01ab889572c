#!/bin/bash
# Makes the keys that sign the image, once, into image/keys: for tests and trials. A real deployment
# puts its own there, or signs elsewhere.
#
#   pk, kek, db   Secure Boot: platform key, key exchange key, and the key that signs boot loader and kernel image
#   pcr           signs the expected PCR 11 of each kernel image, to which the state partition is bound
set -euo pipefail
umask 077
keys=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)/keys
mkdir -p "$keys"
cd "$keys"
for name in pk kek db; do
    [ -e $name.pem ] || openssl req -x509 -newkey rsa:2048 -nodes -sha256 -days 7300 -subj "/CN=Strongroom test $name/" -keyout $name.key -out $name.pem 2>log
done
if [ ! -e pcr.pub ]; then
    openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out pcr.key 2>log
    openssl pkey -in pcr.key -pubout -out pcr.pub
fi
[ -e guid ] || cat /proc/sys/kernel/random/uuid >guid
