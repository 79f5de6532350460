# `make test` and `make demo` work from a bare clone: each makes its own virtual environment.
# A machine without a GPU needs no CUDA build of torch; TORCH=torch takes the newest one.
PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= torch==2.13.0
PROMPT ?= a red torus
PRESET ?= draft

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Newer versions of pip show as a warning what setuptools says about every editable install.
EDITABLE_NOTE := ignore:Editable installation

.PHONY: test lint demo clean

test: lint
	$(BIN)/python -m pytest

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: $(READY)
	$(BIN)/dreamflow generate "$(PROMPT)" --refiner demo-refiner --preset $(PRESET) --out demo-out
	@echo "the mesh is demo-out/mesh.glb; demo-out/turntable.gif shows it from all around"

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet "$(TORCH)"
	PYTHONWARNINGS="$(EDITABLE_NOTE)" $(BIN)/pip install --quiet --editable ".[headless,test,lint]"
	touch $(READY)

clean:
	rm -rf $(VENV) demo-out
