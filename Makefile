# make demo   from raw text to a chat with your own model: installs, trains the pocket recipe, opens a chat
# make chat   chat with the pocket model once it is trained
# make test   installs what the checks need, then checks format, lint, types, layers, and runs every test
# make lint   the same without the tests
# make gpu-check   on a machine with a GPU: all that only a GPU can check, into runs/gpu-check
# make clean  removes what make and the tools made (.venv, caches); never runs/
#
# Everything lives in .venv. The versions are those of constraints.txt. Plain POSIX make: GNU make 3.81, which
# macOS has, is enough, and paths with spaces work, as every path here is relative.

# The pinned PyTorch is built for Python 3.11 to 3.14; the first that fits is taken. make PYTHON=... names another.
GOOD_PYTHON := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(GOOD_PYTHON)' 2>/dev/null && { echo "$$p"; break; }; done)

python := .venv/bin/python
pilgrim := $(python) -m pilgrim
install := $(python) -m pip install --disable-pip-version-check -c constraints.txt

.PHONY: help demo chat test lint gpu-check clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

demo: .venv/installed
	$(pilgrim) run recipes/pocket.toml
	@if [ -t 0 ] && [ -t 1 ]; then \
		exec $(pilgrim) chat runs/pocket; \
	else \
		$(pilgrim) chat runs/pocket --say "Hello!" --say "What is your name?" --say "Tell me a story about a dog." && \
		echo && echo "Chat with it yourself: make chat, or .venv/bin/pilgrim chat runs/pocket"; \
	fi

chat: .venv/installed
	@$(pilgrim) chat runs/pocket

test: lint
	$(python) -m pytest

lint: .venv/installed-dev
	$(python) -m ruff format --check
	$(python) -m ruff check
	$(python) -m mypy
	.venv/bin/lint-imports --no-logo

gpu-check: .venv/installed-dev
	$(python) benchmarks/gpu_check.py

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find pilgrim scripts benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: each is made once, and again when what it was made from has changed.

.venv/made:
	@"$(PYTHON)" -c '$(GOOD_PYTHON)' 2>/dev/null || { \
		echo "pilgrim needs Python 3.11 to 3.14, and $(if $(PYTHON),$(PYTHON) is not that,none is found); \
	install one, or name one: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	@touch $@

.venv/installed: .venv/made pyproject.toml constraints.txt
	@if [ "$$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null 2>&1; then \
		echo "No NVIDIA driver is found here. The usual PyTorch package for Linux carries CUDA all the same: it works,"; \
		echo "and is some gigabytes larger than needed. docs/hardware.md says how to have the small CPU build."; fi
	$(install) -e .
	@touch $@

.venv/installed-dev: .venv/made pyproject.toml constraints.txt
	$(install) -e ".[dev]"
	@touch .venv/installed $@
