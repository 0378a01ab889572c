#!/bin/bash
# The steps that run inside the tools tree: see build.sh. /work is the build's directory, /debian
# the unpacked packages.
#
#   steps.sh VERSION
set -euo pipefail
version=$1
cd /work
mkdir out
name=strongroom_$version

# Root: what the list names, our own files over it.
python3 assemble.py root.list /debian root overlay-root
cp strongroom root/usr/bin/strongroom
cp units/strongroom* root/usr/lib/systemd/system/
[ ! -d extra ] || cp -rP extra/. root/
cp os-release root/usr/lib/os-release
ln -sf ../usr/lib/os-release root/etc/os-release
mkdir -p root/usr/lib/strongroom
install -m 644 keys/pcr.pub root/usr/lib/strongroom/pcr.pem
find root -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
mkfs.erofs --quiet -zlz4hc,12 -C65536 -T"$SOURCE_DATE_EPOCH" --all-root -U 6f2a4d3e-0c1b-4e58-9f1c-2a5d7b8c9e10 root.erofs root
salt=$(sha256sum root.erofs | cut -c1-64)
veritysetup format root.erofs root.verity --uuid 6f2a4d3e-0c1b-4e58-9f1c-2a5d7b8c9e11 --salt "$salt" | sed -n 's/^Root hash:[[:space:]]*//p' >roothash
roothash=$(cat roothash)
uuid() { # the first or last 128 bits of the root hash: where the initrd looks for the partition
    echo "$1" | sed 's/^\(........\)\(....\)\(....\)\(....\)\(............\)$/\1-\2-\3-\4-\5/'
}
root_uuid=$(uuid "${roothash:0:32}")
verity_uuid=$(uuid "${roothash:32:32}")

# The kernel obeys nothing behind the lone dashes: what systemd-stub adds to the command line comes
# after it. The root hash is in it for whoever reads the log, and for updates; the initrd has it in
# a unit of its own.
cmdline="$(tr '\n' ' ' <disk/cmdline)roothash=$roothash${STRONGROOM_CMDLINE:+ $STRONGROOM_CMDLINE} --"

# The initrd.
python3 assemble.py initrd.list /debian initrd overlay-initrd
install -m 755 init initrd/init
printf '%s\n' "$cmdline" >initrd/etc/cmdline
sed -i -e "s,@ROOT@,$root_uuid,;s,@TREE@,$verity_uuid,;s,@HASH@,$roothash," \
    -e "s,@ROOT_ESCAPED@,${root_uuid//-/\\\\x2d},;s,@TREE_ESCAPED@,${verity_uuid//-/\\\\x2d}," initrd/etc/systemd/system/verified-root.service
find initrd -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
(cd initrd && find . -print0 | sort -z | cpio --quiet --null -o -H newc --reproducible -R 0:0) | zstd -q -19 -T1 -o initrd.zst

# A signature holds the time at which it was made: for whoever builds it again, that of the sources.
# The clock stands (-f): the build takes a second more or less each time.
at_source_date() {
    faketime -f "$(date -u -d "@$SOURCE_DATE_EPOCH" '+%Y-%m-%d %H:%M:%S')" "$@"
}

# The kernel, its command line and the initrd, signed as one. The TPM gives the state's key after
# the initrd and before sysinit.target, no later.
at_source_date ukify build \
    --linux "$(echo /debian/boot/vmlinuz-*)" \
    --initrd initrd.zst \
    --os-release @os-release \
    --cmdline "$cmdline" \
    --uname "$(ls /debian/usr/lib/modules)" \
    --stub /usr/lib/systemd/boot/efi/linuxx64.efi.stub \
    --secureboot-private-key keys/db.key --secureboot-certificate keys/db.pem \
    --signtool systemd-sbsign --no-sign-kernel \
    --pcr-private-key keys/pcr.key --pcr-public-key keys/pcr.pub --pcr-banks sha256 \
    --phases enter-initrd:leave-initrd \
    --output "$name.efi"
at_source_date /usr/lib/systemd/systemd-sbsign sign --private-key keys/db.key --certificate keys/db.pem --output systemd-boot.efi \
    /usr/lib/systemd/boot/efi/systemd-bootx64.efi

# The disk: boot partition, slot A. The other slot and the state are made at the first boot.
mkdir definitions
sed -e "s/@NAME@/$name/g" disk/10-esp.conf >definitions/10-esp.conf
sed -e "s/@NAME@/$name/g;s/@UUID@/$root_uuid/" disk/20-root.conf >definitions/20-root.conf
sed -e "s/@NAME@/$name/g;s/@UUID@/$verity_uuid/" disk/21-root-verity.conf >definitions/21-root-verity.conf
cp "$name.efi" uki.efi
touch -d "@$SOURCE_DATE_EPOCH" uki.efi systemd-boot.efi disk/*
systemd-repart --empty=create --sector-size=512 --size=auto --offline=yes --definitions=definitions --seed=6f2a4d3e-0c1b-4e58-9f1c-2a5d7b8c9e12 \
    --dry-run=no "out/$name.raw"

mv "$name.efi" out/
cp root.erofs "out/${name}_$root_uuid.root.raw"
cp root.verity "out/${name}_$verity_uuid.verity.raw"
chmod 644 out/*
sha256sum strongroom | cut -d' ' -f1 >out/strongroom.sha256
# What the units of the initrd and the root take in as credentials: file and line.
find {initrd,root}/{etc,usr/lib}/systemd/system -type f | sort | while read -r file; do
    sed -n -E "s,^(Import|Load)Credential(Encrypted)?=,$file:&,p" "$file"
done >out/credentials
(cd initrd && find . -mindepth 1 -printf '%M %U:%G %p\n') | sort -k3 >out/initrd.contents
# Mode, owner and path of everything in the root; "#!" marks a script.
(cd root && find . -mindepth 1 \( -type f -exec bash -c 'read -rN2 start <"$1" && [ "$start" = "#!" ] && echo "#! $1"' - {} \; -o -true \) -printf '%M %U:%G %p\n') | sort -k3 >out/root.contents
python3 sbom.py "$version" debian.packages crates "$(cat out/strongroom.sha256)" >out/sbom.cdx.json

# For virtual machines: firmware that enforces Secure Boot with the build's keys.
cp /usr/share/OVMF/OVMF_CODE_4M.secboot.fd out/firmware-code.fd
guid=$(cat keys/guid)
virt-fw-vars --loglevel WARNING --input /usr/share/OVMF/OVMF_VARS_4M.fd --output out/firmware-vars.fd --secure-boot \
    --set-pk "$guid" keys/pk.pem --add-kek "$guid" keys/kek.pem --add-db "$guid" keys/db.pem
# Others' keys: to show that nothing of ours boots there.
cp /usr/share/OVMF/OVMF_VARS_4M.ms.fd out/firmware-vars-others.fd
# Secure Boot off: to show that the state stays closed there.
cp /usr/share/OVMF/OVMF_VARS_4M.fd out/firmware-vars-off.fd
