# hvd: everything from a fresh clone. `make demo` shows it, `make test` proves it.
#
#   make setup      virtual environment in .venv, C parts, guest programs, Debian packages when root; idempotent
#   make demo       a daemon on a private socket, real guests, their console, trace and metrics; about a minute
#   make test       the suite, some ten minutes on two cores      make test-slow   the tests marked slow (they build Linux)
#   make soak DURATION=10m     random verbs on random guests while the daemon is killed again and again; SOAK_SEED repeats a run
#   make bench      every figure of the README, side by side with its peer
#   make lint       ruff, mypy --strict, buf lint, generated code up to date
#   make proto      client/hvapi from proto/

SYSTEM_PYTHON ?= python3
VENV := .venv
PYTHON := $(VENV)/bin/python
# Modules of tests at once; each has its daemons, directories and network namespaces to itself.
TEST_JOBS ?= 2
export HVD_REQUIRE_BACKENDS

.PHONY: all setup demo test test-slow soak bench lint proto clean packages
.DEFAULT_GOAL := all
all: setup

include native.mk
include guests.mk

# Packages that only root can install: what is missing is installed when we are root, otherwise named, and what needs it says so.
packages:
	@sh deploy/packages.sh

$(VENV)/.stamp: pyproject.toml | packages
	@$(SYSTEM_PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "hvd needs Python 3.11 or later; $(SYSTEM_PYTHON) is $$($(SYSTEM_PYTHON) -V 2>&1). Set SYSTEM_PYTHON." >&2; exit 1; }
	@$(SYSTEM_PYTHON) -m venv $(VENV) || { echo "$(SYSTEM_PYTHON) cannot make virtual environments: install its venv module (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat -e '.[daemon,dev]'
	@# Two directories on the path, the root by pip and this one: what setuptools does otherwise imports a finder of modules in every process.
	@echo "$(CURDIR)/client" > "$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/hvd-client.pth"
	@touch $@

setup: packages $(VENV)/.stamp native guests
	@# Every hvctl and template would compile them anew where Python may not keep what it compiled (PYTHONDONTWRITEBYTECODE).
	@$(PYTHON) -m compileall -q client hvd

# The C parts and the guests need the virtual environment only to write points.h; make must not build them before it is there.
hvd/board/native/points.h: | $(VENV)/.stamp

demo: setup
	@$(PYTHON) -m deploy.demo

test: setup lint
	$(PYTHON) -m pytest -m 'not slow' -n $(TEST_JOBS) --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

test-slow: setup
	$(PYTHON) -m pytest -m slow --timeout 3000 $(PYTEST_ARGS)

DURATION ?= 10m
soak: setup
	SOAK_DURATION=$(DURATION) $(PYTHON) -m pytest -q -s tests/soak/test_soak.py::test_soak $(PYTEST_ARGS)

bench: setup
	$(PYTHON) -m bench $(BENCH_ARGS)

lint: $(VENV)/.stamp
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/buf lint proto
	@PYTHON=$(abspath $(PYTHON)) sh proto/generate.sh build/hvapi-check && diff -r -x __pycache__ build/hvapi-check/v1 client/hvapi/v1 \
	    && diff -r -x __pycache__ build/hvapi-check/runner client/hvapi/runner || { echo "client/hvapi is not what proto/ says: make proto" >&2; exit 1; }

proto: $(VENV)/.stamp
	PYTHON=$(abspath $(PYTHON)) sh proto/generate.sh client/hvapi

clean: native-clean guests-clean
	rm -rf build
