# Copyright (c) 2026, CryoProtect Backup contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Every target works on a fresh Debian 12 or 13, as root, with nothing but git and make installed.

SHELL = /bin/bash
MAKEFLAGS += --no-print-directory
# pytest's own arguments, for example: make test PYTEST_ARGS='-k wal'
PYTEST_ARGS =
# Where the repositories of test-locations lie, and the tests that have one.
LOCATION_KINDS = s3 sftp
LOCATION_TESTS = tests/faults $(addprefix tests/integration/,storage backup wal restore verify replicate keys \
	test_misuse.py test_independent_reader.py test_documented_results.py)
# The benchmark's arguments, for example: make benchmark BENCHMARK_ARGS='--gigabytes 0.3'
BENCHMARK_ARGS =
# The playbook's, for example: make demo DEMO_ARGS='-e demo_keep=true'
DEMO_ARGS =
# The scenarios of extensions/molecule to run; none means all.
MOLECULE_SCENARIOS =
# By module, not by script: then sys.executable lies where every user can reach it, too.
PYTHON = tools/reachable.sh .venv/bin/python
PYTEST = $(PYTHON) -m pytest

.DEFAULT_GOAL = help
.PHONY: help venv packages demo test test-fast test-locations molecule benchmark lint lock build clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 24

demo: venv ## a cluster is backed up, broken and brought back, in three minutes
	@tools/install-packages.sh postgresql
	@ANSIBLE_CONFIG=playbooks/demo.cfg $(PYTHON) -m ansible playbook playbooks/demo.yml $(DEMO_ARGS)

test: lint ## everything that can be checked: lint, then all tests, then the scenarios of molecule
	@$(PYTEST) -n auto --dist loadscope $(PYTEST_ARGS)
	@tools/molecule.sh

molecule: venv packages ## roles and playbooks on whole hosts: a quarter of an hour. MOLECULE_SCENARIOS='install' for one
	@tools/molecule.sh $(MOLECULE_SCENARIOS)

test-fast: venv ## unit tests only, stops at the first failure
	@$(PYTEST) tests/unit -x -q -n auto $(PYTEST_ARGS)

test-locations: venv packages ## every test of the engine with a repository, on S3 and SFTP: more than an hour. LOCATION_KINDS='s3 sftp posix'
	@LOCATION_KINDS='$(LOCATION_KINDS)' $(PYTEST) -n auto --dist loadscope $(LOCATION_TESTS) $(PYTEST_ARGS)

benchmark: venv packages ## the table of docs/performance.md: time and memory beside other programs, a quarter of an hour
	@$(PYTHON) -m tests.benchmarks $(BENCHMARK_ARGS)

lint: venv packages ## style, types, Ansible's own checks, documentation, changelog
	@tools/lint.sh

venv: ## .venv with everything pinned by hash, and the command .venv/bin/cryobackup
	@tools/make-venv.sh

packages: # the Debian packages that the tests need
	@tools/install-packages.sh -f tests/apt-packages.txt

lock: ## resolve the requirements anew (LOCK_ARGS='--upgrade' for newer versions)
	@tools/lock.sh $(LOCK_ARGS)

build: venv ## the collection as a tarball, in build/
	@tools/build.sh build

clean: ## remove what the other targets made
	rm -rf .venv build .ansible .hypothesis .mypy_cache .pytest_cache .ruff_cache tests/output
	find plugins tests -name __pycache__ -type d -prune -exec rm -rf {} +
