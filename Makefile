# Everything sets itself up in $(VENV): with uv where there is one, else with venv and pip.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One process for each core; the tests of a file stay together, since they share what they made.
PARALLEL ?= -n auto --dist loadfile
export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-extended check format compatibility gpu clean
.DEFAULT_GOAL := help

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 24

demo: $(READY)  ## Train on real sensor data and on tokens, export, stream and compare: runs/demo/report.html, runs/tagging
	$(BIN)/python -m demos.demo --out runs/demo
	$(BIN)/python -m demos.tagging --out runs/tagging

test: $(READY)  ## Run the tests
	$(BIN)/python -m pytest -q $(PARALLEL)

test-extended: $(READY)  ## Run the tests and their long versions
	$(BIN)/python -m pytest -q $(PARALLEL) -m "extended or not extended"

check: $(READY)  ## Lint, format check, types, doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --doctest-modules edgeseq demos

format: $(READY)  ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

compatibility: $(READY)  ## Export every family with edgeseq and with Keras, and write docs/compatibility.md (long)
	$(BIN)/python -m tests.export.compatibility

gpu: $(READY)  ## Compare training speed on the CPU and on a GPU, where there is one
	$(BIN)/python -m demos.train_speed

clean:  ## Remove what the targets above made
	rm -rf $(VENV) runs build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(READY): pyproject.toml
	@if command -v uv >/dev/null; then \
		echo "setting up $(VENV) with uv"; \
		uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && uv pip install --quiet --python $(BIN)/python -e '.[dev]'; \
	else \
		echo "setting up $(VENV) with venv and pip (some minutes; TensorFlow is large)"; \
		$(PYTHON) -m venv $(VENV) && $(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'; \
	fi
	@touch $@
