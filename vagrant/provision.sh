#!/usr/bin/env bash
# Prepares the VM: the kernel modules that the tests use, the packages that the Makefile does not know about, and podwire.
# With PODWIRE_RUN=1 it also runs the two commands of the README and fails where they fail.
set -euo pipefail

export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends make ca-certificates python3 python3-venv

# A stock kernel has these as modules; br_netfilter makes bridge-nf-call-iptables 0 and 1 testable.
for module in br_netfilter overlay veth bridge nf_tables nf_conntrack nf_nat; do
  modprobe "$module" || echo "module $module is not there; what needs it will say so"
done

cd /podwire
make install
ln -sf /podwire/.venv/bin/podwire /usr/local/bin/podwire

if [ "${PODWIRE_RUN:-0}" = 1 ]; then
  make demo
  make test
fi
echo 'ready: vagrant ssh, then: cd /podwire && sudo make demo'
