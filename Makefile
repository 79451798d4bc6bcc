# Every target sets up what it needs: `make demo` in a fresh clone is enough.
# As root, or with sudo at hand: guests are put on network namespaces.

VENV := .venv
DEBUG_VENV := .venv-debug
LOWEST_VENV := .venv-lowest
FUZZ_SECONDS := 200
BIN := $(VENV)/bin
SOURCES := pyproject.toml meson.build meson.options \
	$(shell find src -type f -not -name '*.pyc' -not -name '*.pyi')
STUBS := $(shell find src -name '*.pyi')
STUBBED_MODULES := $(subst /,.,$(STUBS:src/%.pyi=%))

# Under sudo nothing may be left in the tree that its owner cannot remove.
AS_ROOT := $(if $(filter-out 0,$(shell id -u)),sudo --preserve-env=GUESTWIRE_CACHE env \
	PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/tmp/guestwire-hypothesis)

PIP_INSTALL := -m pip install --quiet --disable-pip-version-check
# create VENV: the interpreter is looked for only when it is needed, since setup may install it.
# Older pips, such as Debian 12's, know neither dependency groups nor repeated settings.
create = "$$(scripts/find-python.sh)" -m venv $(1) \
	&& $(1)/bin/python $(PIP_INSTALL) --upgrade 'pip>=25.1' \
	&& $(1)/bin/python $(PIP_INSTALL) --group build

# install VENV,SETTINGS: build directories outlive the call, so that only what changed is compiled.
install = PATH="$(CURDIR)/$(1)/bin:$$PATH" \
	python $(PIP_INSTALL) --no-build-isolation $(2) .

SANITIZERS := -Csetup-args=-Dbuildtype=debug -Csetup-args=-Ddebug_checks=true \
	-Csetup-args=-Db_sanitize=address,undefined -Csetup-args=-Db_lundef=false

# What takes long in tests is guests that boot, each on a processor of its own. tests/conftest.py says which
# tests stay together.
PARALLEL := --numprocesses=2 --dist=loadscope --no-loadscope-reorder

# The tests that use what guestwire needs of other projects: netlink, the command line, tables, JSON and TOML.
LOWEST_TESTS := tests/unit/cli tests/unit/host tests/unit/bench $(addprefix tests/unit/test_,config.py control.py) \
	$(addprefix tests/net/test_,doctor.py interface.py link_events.py steering.py)

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help demo test test-lowest lab lab-nested build lint debug fuzz bench bench-tcp soak soak-files clean setup setup-test
.DELETE_ON_ERROR:

help: ## say what can be made
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' Makefile | expand -t 12

demo: $(VENV)/.built ## boot a guest, put it on a wire through guestwire, measure, tear down
	@$(AS_ROOT) $(CURDIR)/$(BIN)/guestwire demo

test: setup-test $(VENV)/.built $(VENV)/.test-tools ## run all tests that this machine can run
	@$(AS_ROOT) $(CURDIR)/$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_ARGUMENTS)

test-lowest: setup-test $(LOWEST_VENV)/.installed ## run tests with the oldest versions of what guestwire needs
	@$(AS_ROOT) $(CURDIR)/$(LOWEST_VENV)/bin/python -m pytest $(PARALLEL) $(LOWEST_TESTS)

lab: setup-test $(VENV)/.built $(VENV)/.test-tools ## prove zero copy on a NIC, in a machine that has one
	@$(AS_ROOT) $(CURDIR)/$(BIN)/python -m pytest tests/lab $(PYTEST_ARGUMENTS)

lab-nested: setup-test $(VENV)/.built $(VENV)/.test-tools ## the same with a real guest inside that machine
	@$(AS_ROOT) env GUESTWIRE_LAB_NESTED=1 $(CURDIR)/$(BIN)/python -m pytest -s tests/lab -k nested

build: $(VENV)/.built ## build and install into .venv

lint: $(VENV)/.built $(VENV)/.lint-tools ## check style, types, and the stubs of the compiled modules
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@PATH="$(CURDIR)/$(BIN):$$PATH" cython-lint $(shell find src -name '*.pyx' -o -name '*.pxd')
	@$(BIN)/mypy
	@$(BIN)/python -m mypy.stubtest --concise --ignore-disjoint-bases \
		--allowlist tests/stubtest-allowlist.txt $(STUBBED_MODULES)

debug: $(DEBUG_VENV)/.built ## run the unit and model tests under sanitizers, with bounds checks
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" \
		$(DEBUG_VENV)/bin/python -m pytest --capture=sys $(PARALLEL) tests/unit tests/model

fuzz: $(DEBUG_VENV)/.built ## feed whatever reads headers with nonsense, each for FUZZ_SECONDS, under sanitizers
	@ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
		LD_PRELOAD="$$(gcc -print-file-name=libasan.so)" GUESTWIRE_FUZZ_SECONDS=$(FUZZ_SECONDS) \
		$(DEBUG_VENV)/bin/python -m pytest --capture=sys -s tests/fuzz

bench: setup-test $(VENV)/.built $(VENV)/.test-tools ## measure guestwire beside DPDK: loopback, veth, wire, latency; into docs/benchmarks
	@$(AS_ROOT) $(CURDIR)/$(BIN)/python benchmarks/dpdk.py $(BENCH_ARGUMENTS)

bench-tcp: setup-test $(VENV)/.built $(VENV)/.test-tools ## measure TCP of real guests beside their emulators' own TAP drivers
	@$(AS_ROOT) $(CURDIR)/$(BIN)/python benchmarks/tcp.py $(BENCH_ARGUMENTS)

soak: setup-test $(VENV)/.built $(VENV)/.test-tools ## every byte of 22 million frames; 20 guests that come and go 100 times; 10,000 races to be learnt
	@$(AS_ROOT) env GUESTWIRE_SOAK=1 $(CURDIR)/$(BIN)/python -m pytest \
		tests/peers/test_virtio_user.py tests/net/test_many_guests.py tests/unit/datapath/test_addresses.py \
		-k 'many_guests or same_time or (every_byte_comes_back and not wire)'

soak-files: setup-test $(VENV)/.built $(VENV)/.test-tools ## 256 MiB each way: ports, modes, guests, IP versions, MTUs, and zero copy in the lab
	@$(AS_ROOT) env GUESTWIRE_SOAK=1 $(CURDIR)/$(BIN)/python -m pytest \
		tests/guests/test_files.py tests/lab/test_files.py

clean: ## remove what was built here (fetched kernels stay, in ~/.cache/guestwire)
	@rm -rf $(VENV) $(DEBUG_VENV) $(LOWEST_VENV) build .mypy_cache .pytest_cache .ruff_cache .hypothesis

setup:
	@scripts/setup.sh

setup-test:
	@scripts/setup.sh --test

$(VENV)/.created: | setup
	@echo "creating $(VENV)"
	@$(call create,$(VENV))
	@touch $@

$(VENV)/.built: $(SOURCES) $(VENV)/.created
	@echo "building guestwire"
	@$(call install,$(VENV),-Cbuild-dir=build/release)
	@touch $@

$(VENV)/.test-tools: pyproject.toml $(VENV)/.created
	@$(BIN)/python $(PIP_INSTALL) --group test
	@touch $@

$(VENV)/.lint-tools: pyproject.toml $(VENV)/.created
	@$(BIN)/python $(PIP_INSTALL) --group lint
	@touch $@

$(LOWEST_VENV)/.installed: $(VENV)/.built
	@echo "installing the oldest versions of what guestwire needs"
	@rm -rf $(LOWEST_VENV) build/wheel
	@$(call create,$(LOWEST_VENV))
	@PATH="$(CURDIR)/$(BIN):$$PATH" python -m pip wheel --quiet --no-build-isolation --no-deps \
		-Cbuild-dir=build/release --wheel-dir=build/wheel .
	@$(BIN)/python scripts/lowest-versions.py >build/lowest-versions.txt
	@$(LOWEST_VENV)/bin/python $(PIP_INSTALL) --constraint build/lowest-versions.txt \
		build/wheel/*.whl --group test
	@touch $@

$(DEBUG_VENV)/.created: | setup
	@echo "creating $(DEBUG_VENV)"
	@$(call create,$(DEBUG_VENV)) && $(DEBUG_VENV)/bin/python $(PIP_INSTALL) --group test
	@touch $@

$(DEBUG_VENV)/.built: $(SOURCES) $(DEBUG_VENV)/.created
	@echo "building guestwire with sanitizers"
	@$(call install,$(DEBUG_VENV),-Cbuild-dir=build/debug $(SANITIZERS))
	@touch $@
