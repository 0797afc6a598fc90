# podwire: `make demo` and `make test` are all that a newcomer needs. Everything is installed into .venv.
SHELL := /bin/bash
VENV  := .venv
BIN   := $(VENV)/bin
NATIVE := $(wildcard tools/kubeschema/*.py tools/nativebuild/*.py dns/podwire_dns/native/*.[ch] cni/podwire_cni/native/*.[ch] controlplane/podwire_node/native/*.c proxy/podwire_proxy/ebpf/native/*.[ch])

# command:package - what is used, and the Debian package that has it
TOOLS      := ip:iproute2 nsenter:util-linux curl:curl dig:bind9-dnsutils nft:nftables
TEST_TOOLS := mmdebstrap:mmdebstrap conntrack:conntrack strace:strace iptables-legacy-restore:iptables ps:procps sudo:sudo chromium:chromium

DATAPLANES := podwire

APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=3

.DEFAULT_GOAL := help
.PHONY: help lock image test-image test-provision demo up down status check test test-unprivileged test-netns test-long test-runtimes bench-cni lint packages test-packages install clean

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 20

# ---- installing

define need  # $(1): command:package pairs. Installs with apt-get as root; else says what is missing.
	@missing=""; for pair in $(1); do command -v $${pair%%:*} >/dev/null || missing="$$missing $${pair#*:}"; done; \
	apt=; [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt=yes; \
	python3 -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || missing="$$missing python3 python3-venv"; \
	[ -z "$$missing" ] && exit 0; \
	if [ "$$apt" ]; then \
	  echo "installing Debian packages:$$missing"; \
	  $(APT) update && $(APT) install -y --no-install-recommends $$missing >/dev/null; \
	else echo "missing, please install:$$missing" >&2; exit 1; fi
endef

# Compilers and Python's headers. Installed with apt-get as root; podwire works without them, slower, and says so.
define compilers
	@python=$$([ -x $(BIN)/python ] && echo $(BIN)/python || echo python3); \
	[ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null || exit 0; \
	wanted=$$(PYTHONPATH=tools $$python -m nativebuild.toolchain); [ -n "$$wanted" ] || exit 0; \
	echo "installing Debian packages:" $$wanted; \
	{ $(APT) update && $(APT) install -y --no-install-recommends $$wanted; } >/dev/null \
	|| echo "could not be installed:" $$wanted >&2
endef

packages:
	$(call need,$(TOOLS))
	$(compilers)

test-packages:
	$(call need,$(TOOLS) $(TEST_TOOLS))
	$(compilers)
	@command -v vagrant >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || { \
	  echo "installing vagrant, which checks the Vagrantfile"; \
	  { $(APT) update && $(APT) install -y --no-install-recommends vagrant; } >/dev/null 2>&1 \
	  || echo "no package vagrant here: vagrant/Vagrantfile is left unchecked"; }

# uv where it is present, else venv and pip. The stamps are newer than what they depend on: a second run does nothing.
# Every package is of the version in the requirements file, and pip or uv compares its SHA-256 (`make lock` renews the files).
RUN_LOCK := app/podwire/deploy/requirements.txt
define pip_install  # $(1): requirements files
	@[ -x $(BIN)/python ] || { command -v uv >/dev/null && uv venv -q $(VENV) || python3 -m venv $(VENV); }
	@echo "installing podwire into $(VENV)"
	@if command -v uv >/dev/null; then install="uv pip install -q --python $(BIN)/python"; \
	else install="$(BIN)/python -m pip install -q --disable-pip-version-check"; fi; \
	$$install --no-deps --require-hashes $(foreach file,$(1),-r $(file)) && $$install --no-deps --no-build-isolation -e .
endef

$(VENV)/.installed: pyproject.toml hatch_build.py $(RUN_LOCK) requirements/build.txt $(NATIVE) | packages
	$(call pip_install,$(RUN_LOCK) requirements/build.txt)
	@$(BIN)/python -m podwire.compiled
	@touch $@

$(VENV)/.installed-dev: pyproject.toml hatch_build.py requirements/dev.txt $(NATIVE) | test-packages-if-root
	$(call pip_install,requirements/dev.txt)
	@$(MAKE) -s with-iptables 2>/dev/null || echo "python-iptables could not be built (it needs gcc): its tests are left out"
	@$(BIN)/python -m podwire.compiled
	@touch $@ $(VENV)/.installed

.PHONY: with-iptables
with-iptables:  # python-iptables, which finds what others left in legacy tables; podwire does without it
	@if command -v uv >/dev/null; then install="uv pip install -q --python $(BIN)/python"; \
	else install="$(BIN)/python -m pip install -q --disable-pip-version-check"; fi; \
	$$install --no-deps --no-build-isolation --require-hashes -r requirements/iptables.txt

lock: $(VENV)/.installed-dev  ## renew the requirements files: versions and SHA-256 of everything that is installed
	@$(BIN)/python tools/lock.py

.PHONY: test-packages-if-root
test-packages-if-root:
	@if [ "$$(id -u)" = 0 ]; then $(MAKE) -s test-packages; fi

install: $(VENV)/.installed  ## install into .venv

# ---- running

demo: $(VENV)/.installed     ## a 3-node cluster, every behaviour proven with real traffic, everything taken down
	@$(BIN)/podwire demo

up: $(VENV)/.installed       ## start a 3-node cluster and leave it running
	@$(BIN)/podwire up

down: $(VENV)/.installed     ## take it down
	@$(BIN)/podwire down

status: $(VENV)/.installed   ## where everything stands
	@$(BIN)/podwire status

# ---- checking

# What Python and pytest compile stays in .venv, for the processes of this run and for the next run.
PYTEST := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(CURDIR)/$(VENV)/pycache $(BIN)/python -m pytest -q
# Two files of tests at a time, those that take longest first (conftest.py), and three of those that need no packets: they
# wait while processes start. Tests with the mark `alone` follow by themselves.
JOBS      ?= 2
PURE_JOBS ?= 3
BESIDE     = --dist loadfile --no-loadscope-reorder -n
PURE   := base cni controlplane dns observe policy proxy app tools

# The lint runs beside the tests, which wait at times; what it says stands at the end.
check: $(VENV)/.installed-dev  ## lint, types, and every test that needs no packets (6 minutes)
	@said=$$(mktemp); $(MAKE) -s lint >$$said 2>&1 & lint=$$!; trap 'kill $$lint 2>/dev/null; rm -f $$said' EXIT; \
	failed=0; $(MAKE) -s test-unprivileged || failed=1; \
	wait $$lint || failed=1; cat $$said; exit $$failed

test: $(VENV)/.installed-dev  ## `check`, and (as root) the tests with real packets in network namespaces (36 minutes with the installing)
	@failed=0; $(MAKE) -s check || failed=1; \
	if [ "$$(id -u)" = 0 ]; then $(MAKE) -s test-netns || failed=1; \
	else echo 'not root: the tests with packets (netns-tests) are left out'; fi; \
	[ $$failed = 0 ] || echo 'failures are above'; exit $$failed

test-unprivileged: $(VENV)/.installed-dev  ## the tests that need no root
	@$(PYTEST) $(BESIDE) $(PURE_JOBS) -m "not long and not runtimes" $(PURE)

test-netns: $(VENV)/.installed-dev runtimes  ## the tests with real packets (root)
	@$(PYTEST) $(BESIDE) $(JOBS) -m "not long and not alone" netns-tests; beside=$$?; \
	[ $$beside -le 1 ] || exit $$beside; \
	$(PYTEST) -m "not long and alone" netns-tests || exit; \
	[ $$beside = 0 ] || echo 'failures are above: in the tests that ran beside each other'; exit $$beside

test-long: $(VENV)/.installed-dev runtimes  ## everything, with the big counts of property and fuzz tests
	$(call need,$(TOOLS) mmdebstrap:mmdebstrap)
	@PODWIRE_LONG=1 $(PYTEST)

.PHONY: runtimes
runtimes: $(VENV)/.installed-dev  # unpacked into .venv, not installed: no daemon starts
	@PYTHONPATH=netns-tests $(BIN)/python -m lab.debian

test-runtimes: $(VENV)/.installed-dev runtimes  ## containerd and podman of Debian's packages call the CNI plugin (root)
	@$(BIN)/python -m pytest -q -m runtimes netns-tests

.PHONY: test-clients
test-clients: $(VENV)/.installed-dev  ## kubectl and other clients, unmodified, against the API server of a cluster (root, 15 minutes)
	@PODWIRE_CLIENTS=1 $(PYTEST) -m clients netns-tests

image: $(VENV)/.installed  ## the agent as an OCI image in dist/, without a container engine (root)
	$(call need,$(TOOLS) mmdebstrap:mmdebstrap)
	@$(BIN)/podwire image build

test-image: $(VENV)/.installed-dev runtimes  ## builds the image and runs it in containerd of Debian's package (root)
	$(call need,$(TOOLS) mmdebstrap:mmdebstrap)
	@$(BIN)/python -m pytest -q netns-tests/test_image.py

test-provision: $(VENV)/.installed-dev  ## vagrant/provision.sh and the demo on fresh Debian machines of namespaces; RELEASE=trixie (root, 8 minutes)
	$(call need,$(TOOLS) mmdebstrap:mmdebstrap)
	@PODWIRE_RELEASE=$(RELEASE) $(BIN)/python -m pytest -q netns-tests/test_provision.py

.PHONY: test-vm
test-vm: $(VENV)/.installed-dev  ## the provisioning, the demo and the tests in a Debian VM with its own kernel; VM="..." (root)
	$(call need,$(TOOLS) mmdebstrap:mmdebstrap qemu-system-x86_64:qemu-system-x86 ssh:openssh-client mkfs.ext4:e2fsprogs)
	@PYTHONPATH=netns-tests $(BIN)/python vagrant/qemu.py $(VM)

bench-cni: $(VENV)/.installed  ## the CNI plugin beside Debian's reference plugins (root)
	@$(BIN)/python bench/bench_cni.py

.PHONY: soak
soak: $(VENV)/.installed-dev  ## ten minutes of churn on a whole cluster, every failure of a client explained or it fails (root)
	@PODWIRE_SOAK=$${PODWIRE_SOAK:-600} $(BIN)/python -m pytest -q -s netns-tests/test_soak.py

lint: $(VENV)/.installed-dev  ## ruff, the formatter, the walls between packages, mypy; clang-format and warnings of C
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check -q .
	@$(BIN)/lint-imports --no-logo --no-cache
	@PYTHONPATH=tools $(BIN)/python -m nativebuild.lint
	@$(BIN)/mypy

# ---- measuring (root)

.PHONY: bench-dns
bench-dns: $(VENV)/.installed-dev  ## DNS beside knot and unbound; writes bench/results/dns.json
	$(call need,$(TOOLS) knotd:knot unbound:unbound dnsperf:dnsperf)
	@$(BIN)/python bench/bench_dns.py

.PHONY: bench-proxy
bench-proxy: $(VENV)/.installed-dev  ## the Service proxy at 10k and 44k Services; writes bench/results/proxy.json
	@$(BIN)/python bench/bench_proxy.py

.PHONY: bench-policy
bench-policy: $(VENV)/.installed-dev  ## network policies at 1,000 policies and 10,000 pods; writes bench/results/policy.json
	@$(BIN)/python bench/bench_policy.py

.PHONY: bench-api
bench-api: $(VENV)/.installed-dev  ## the API server: creates, 64 writers, watches, lists and starts at 10k; writes bench/results/api.json
	@$(BIN)/python bench/bench_api.py

.PHONY: bench-up
bench-up: $(VENV)/.installed-dev  ## podwire up, down, and a manifest to its Service answering; writes bench/results/up.json
	@$(BIN)/python bench/bench_up.py

.PHONY: bench-observe
bench-observe: $(VENV)/.installed-dev  ## what the flow log costs a connection and a node; writes bench/results/observe.json
	$(call need,$(TOOLS) conntrack:conntrack nft:nftables)
	@$(BIN)/python bench/bench_observe.py

.PHONY: bench bench-report
bench: bench-up bench-api bench-cni bench-proxy bench-policy bench-dns bench-observe bench-report  ## all of them, and docs/benchmarks.md (root; about 20 minutes)

bench-report: $(VENV)/.installed-dev  ## docs/benchmarks.md and its pictures from bench/results
	@$(BIN)/python bench/report.py

.PHONY: conformance
conformance: $(VENV)/.installed-dev  ## every Service behaviour on every dataplane; writes docs/conformance.md and .svg (root)
	@$(BIN)/python -m pytest -q netns-tests --all-rows $(foreach d,$(DATAPLANES),--dataplane $(d)) --dataplane-report docs

.PHONY: screenshots
screenshots: $(VENV)/.installed-dev  ## pictures of `podwire ui` for the docs (root, chromium)
	$(call need,$(TOOLS) chromium:chromium)
	@$(BIN)/python tools/screenshots.py

clean:           ## remove .venv and build results
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -rf cni/podwire_cni/native/bin controlplane/podwire_node/native/bin dns/podwire_dns/native/bin proxy/podwire_proxy/ebpf/native/bin
