#!/usr/bin/env bash
# Runs in the booted guest, as root: a ceremony, a start, a seal; then what the kernel says of the
# running service.
set -euo pipefail
export SOFTHSM2_CONF=/etc/strongroom/softhsm2.conf
cd /root
trap 'set +e; echo "line $LINENO"; systemctl status --no-pager --full strongroom.service strongroom.socket; journalctl --no-pager -n 80 -o cat; exit 1' ERR

fact() { echo "fact $*"; }

fact enabled "$(systemctl is-enabled strongroom.service strongroom.socket strongroom-check.timer | tr '\n' ' ')"
fact before "$(systemctl show --property=ConditionResult,ActiveState --value strongroom.service | tr '\n' ' ')"

# What an operator does for a trial with SoftHSM.
cp /usr/share/doc/strongroom/examples/softhsm2.conf /etc/strongroom/
install -d -o strongroom -g strongroom -m 0700 /var/lib/strongroom/tokens
echo "SOFTHSM2_CONF=$SOFTHSM2_CONF" >>/etc/default/strongroom

# Two custodians, their keys, a plan, everyone's signature.
echo "a passphrase long enough" >passphrase
mkdir -p answers/keys answers/passphrases
for name in Alice Bob Olga Anton; do
    strongroom ceremony custodian new --name "$name" --out "answers/keys/$name.key" --passphrase-file passphrase >/dev/null
    cp passphrase "answers/passphrases/$name"
done
strongroom ceremony plan --out plan.toml --name vault-keys --module /usr/lib/softhsm/libsofthsm2.so --threshold 2 \
    --custodian answers/keys/Alice.key.pub --custodian answers/keys/Bob.key.pub --security-officer answers/keys/Olga.key.pub \
    --auditor answers/keys/Anton.key.pub --host localhost --host 127.0.0.1 >/dev/null
for name in Alice Bob Olga Anton; do
    strongroom ceremony sign plan.toml --key "answers/keys/$name.key" --passphrase-file passphrase >/dev/null
done
echo yes >answers/confirm

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.pem -days 30 -subj "/CN=Test CA" \
    -addext basicConstraints=critical,CA:TRUE 2>/dev/null
cp ca.pem answers/client_ca.pem
ceremony() { strongroom ceremony run plan.toml --dir ceremony --answers answers >ceremony.log 2>&1; }
ceremony && exit 1 || [ $? = 10 ] || { cat ceremony.log; exit 1; }
openssl x509 -req -in ceremony/certificate-request.pem -CA ca.pem -CAkey ca.key -days 30 -copy_extensions copyall -out answers/certificate.pem 2>/dev/null
ceremony || { cat ceremony.log; exit 1; }
fact ceremony done
fact plain.secrets "$(find /etc/strongroom -name hsm-pin -o -name server.key | wc -l)"

# A client, and a policy for it.
openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout client.key -out client.csr -subj "/CN=client" 2>/dev/null
openssl x509 -req -in client.csr -CA ca.pem -CAkey ca.key -days 30 -out client.pem 2>/dev/null \
    -extfile <(echo "subjectAltName=DNS:client.test") -copy_extensions none
cat >/etc/strongroom/policy.toml <<'EOF'
[[rule]]
identities = ["dns:client.test"]
keys = ["*"]
operations = ["*", "global"]
EOF
export STRONGROOM_ADDR=https://127.0.0.1:8200 STRONGROOM_CACERT=/root/ca.pem STRONGROOM_CLIENT_CERT=/root/client.pem STRONGROOM_CLIENT_KEY=/root/client.key

systemctl start strongroom
fact started "$(systemctl is-active strongroom.service strongroom.socket | tr '\n' ' ')"
strongroom key create vault-unseal >/dev/null
strongroom client seal vault-unseal >/dev/null
fact sealed yes
systemctl kill -s HUP strongroom
strongroom client seal vault-unseal >/dev/null
pid=$(systemctl show --property=MainPID --value strongroom)
fact status "$(systemctl show --property=StatusText --value strongroom)"

# What the kernel says of each of its threads.
for field in Seccomp NoNewPrivs CapInh CapPrm CapEff CapBnd CapAmb Uid Gid; do
    fact "thread.$field" "$(cat /proc/"$pid"/task/*/status | sed -n "s/^$field:[[:space:]]*//p" | tr '\t' ' ' | sort -u | paste -sd,)"
done
fact user "$(id -u strongroom)"
fact threads "$(ls /proc/"$pid"/task | wc -l)"
fact namespaces "$(for kind in mnt net ipc user; do [ "$(readlink /proc/"$pid"/ns/$kind)" = "$(readlink /proc/1/ns/$kind)" ] || echo $kind; done | paste -sd,)"

# In its mount namespace, as its user, without landlock: every file and directory that it could
# write to (a socket is only talked to).
writable=$(nsenter --target "$pid" --mount -- /bin/bash -c '
    cd / && exec setpriv --reuid strongroom --regid strongroom --clear-groups find / -path /proc -prune -o -writable ! -type l ! -type s -print' 2>/dev/null |
    grep -vE '^/dev/(null|zero|full|random|urandom|tty|ptmx|pts/ptmx)$' | grep -v '^/var/lib/strongroom\(/\|$\)' || true)
fact writable.elsewhere "${writable:-none}"
fact writable.state "$(nsenter --target "$pid" --mount -- setpriv --reuid strongroom --regid strongroom --clear-groups test -w /var/lib/strongroom && echo yes)"
fact listens "$(awk '$4 == "0A" { print $2 }' /proc/net/tcp /proc/net/tcp6 | sed 's/.*://' | sort -u | paste -sd,)"
fact exposure "$(systemd-analyze security --no-pager strongroom.service | sed -n 's/.*Overall exposure level for strongroom.service: \([0-9.]*\).*/\1/p')"

systemctl start strongroom-check.service && fact check passed
journalctl --no-pager -u strongroom-check -o cat | grep -E '^(ok|skipped|FAILED)' | sed 's/^/fact check: /'
systemctl restart strongroom
strongroom client seal vault-unseal >/dev/null
fact restarted yes
strongroom ceremony verify ceremony/transcript.jsonl --plan plan.toml >/dev/null
systemctl stop strongroom
fact stopped "$(systemctl show --property=Result --value strongroom)"

dpkg --purge strongroom >/dev/null 2>&1
fact purged "$(ls -d /var/lib/strongroom/store /etc/strongroom/strongroom.toml | wc -l)"
fact failed "$(systemctl list-units --failed --plain --no-legend | paste -sd,)"
