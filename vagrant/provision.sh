#!/usr/bin/env bash
# Makes a fresh Debian or Ubuntu machine a node of a podwire cluster: `vagrant up` runs it, and it works on any VM, as root:
#
#   PODWIRE_ADDRESS      this machine's address on the network of the nodes
#   PODWIRE_CONTROL      that of the machine with the control plane; where both are the same, it is this one
#   PODWIRE_JOIN_TOKEN   at least 32 characters, the same on all machines
#   PODWIRE_NODE_NAME    default: the host's name
#   PODWIRE_OVERLAY      auto (default), always or never: VXLAN between the nodes
#   PODWIRE_SRC          the source tree (default: where this script lies)
#   PODWIRE_PATIENCE     a whole number, by which waiting is longer on a slow machine (1)
#   PODWIRE_STEPS        of "packages install cluster demo test", default the first three
#
# Without PODWIRE_CONTROL there is no cluster to join: the machine is only made ready for `make demo` and `make test`.
# Fine to repeat: it brings in changed sources, and what is right already stays.
set -euo pipefail

src=${PODWIRE_SRC:-$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)}
node=${PODWIRE_NODE_NAME:-$(hostname)}
steps=${PODWIRE_STEPS:-packages install cluster}
say() { echo "== $node: $*"; }
wants() { [[ " $steps " == *" $1 "* ]]; }

packages() {
  export DEBIAN_FRONTEND=noninteractive
  say "Debian packages"
  apt-get -o Acquire::Retries=3 update -qq
  apt-get -o Acquire::Retries=3 install -y -qq --no-install-recommends make ca-certificates python3 python3-venv >/dev/null
  make -s -C "$src" packages
}

modules() {  # a stock kernel has these as modules; br_netfilter makes bridge-nf-call-iptables 0 and 1 testable
  for module in br_netfilter overlay veth bridge vxlan nf_tables nf_conntrack nf_nat; do
    modprobe -q "$module" 2>/dev/null || [ -e "/sys/module/$module" ] || say "no module $module: built in, or what needs it will say so"
  done
}

install() {
  say "podwire from $src"
  make -s -C "$src" install
  ln -sf "$src/.venv/bin/podwire" /usr/local/bin/podwire
}

# With systemd the units that `podwire install` wrote are running already. Without it (a chroot, a container) they run from here.
ensure_running() {
  [ -d /run/systemd/system ] && return
  local name=$1 unit=/etc/systemd/system/$1.service
  local command; command=$(sed -n 's/^ExecStart=//p' "$unit")
  start-stop-daemon --stop --quiet --oknodo --remove-pidfile --pidfile "/run/$name.pid" --retry 10
  ( set -a; if grep -q ^EnvironmentFile "$unit"; then . /etc/podwire/agent.env; fi
    exec start-stop-daemon --start --quiet --background --make-pidfile --pidfile "/run/$name.pid" \
      --output "/var/log/$name.log" --startas /bin/sh -- -c "exec $command" )
}

wait_for() {  # wait_for SECONDS WHAT COMMAND...
  local seconds=$(($1 * ${PODWIRE_PATIENCE:-1})) what=$2; shift 2
  for ((i = 0; i < seconds * 2; i++)); do
    "$@" >/dev/null 2>&1 && return
    sleep 0.5
  done
  say "not within $seconds s: $what" >&2
  tail -n 20 /var/log/podwire-*.log >&2 2>/dev/null || true
  [ -d /run/systemd/system ] && journalctl -n 40 --no-pager -u 'podwire-*' >&2
  return 1
}

ready() { podwire get nodes "$node" --kubeconfig /etc/podwire/node.kubeconfig | grep -qw Ready; }

cluster() {
  if [ "$PODWIRE_ADDRESS" = "$PODWIRE_CONTROL" ]; then
    say "the control plane"
    podwire init --advertise "$PODWIRE_CONTROL:6443" --token "$PODWIRE_JOIN_TOKEN" >/dev/null
    podwire install --only control-plane --listen "$PODWIRE_CONTROL:6443"
    for part in apiserver controllers; do ensure_running "podwire-$part"; done
    ln -sf /var/lib/podwire/admin.kubeconfig /root/.podwire-kubeconfig
    echo 'export KUBECONFIG=/var/lib/podwire/admin.kubeconfig' >/etc/profile.d/podwire.sh
  fi
  say "joining $PODWIRE_CONTROL"
  podwire join "https://$PODWIRE_CONTROL:6443" --token "$PODWIRE_JOIN_TOKEN" --node-name "$node" --wait 300
  podwire install --only agent --pods --address "$PODWIRE_ADDRESS" --setting "PODWIRE_RUN_DIR=/run/podwire/node" \
    --setting "PODWIRE_SET=wiring.encapsulation=${PODWIRE_OVERLAY:-auto}"
  ensure_running podwire-agent
  wait_for 60 "Node $node is Ready" ready
}

if wants packages; then packages; fi
modules
if wants install; then install; fi
if wants cluster && [ -n "${PODWIRE_CONTROL:-}" ]; then cluster; fi
if wants demo; then make -C "$src" demo; fi
if wants test; then make -C "$src" test; fi
say "ready$([ "${PODWIRE_ADDRESS:-}" = "${PODWIRE_CONTROL:-none}" ] && echo ': sudo -i podwire get nodes, or: cd /podwire && sudo make demo')"
