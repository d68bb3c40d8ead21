# make help        what there is
# make engine      checkpoint -> artifact, kernels, plans (TensorRT's and native), verification, an answer (CHECKPOINT=... NAME=... PROMPT=...
#                  and, of a picture, IMAGE=FILE)
# make plugins     compile the CUDA kernels for every target (minutes the first time; cached), and the C++ plugin
#                  library where TensorRT's headers are (INCLUDE=DIR)
# make gpu         all that needs a GPU: its tests, the kernels and an engine, checked and timed (CHECKPOINT=...)
# make test        the fast tests, in two processes; make test ARGS="-m slow" the others, one by one (WORKERS=N: in N)
# make check       lint, format, types, import rules
# make clients     the server's tests with other people's clients and suites (installs them)
# make bench       times the artifact NAME, then the engine side by side with peers (installs them)
# make bench-check is the artifact NAME slower than AGAINST (a baseline's name or an artifact), or than AGAINST_PYTHON's
#                  deltart? Without a baseline of that name it is taken
# make clean       what make and deltart made: caches, environment, artifacts; names what it does not know and leaves

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

CHECKPOINT ?= tools/nano/checkpoint
NAME ?= nano
PROMPT ?= Type "planet" backwards
IMAGE ?=
INCLUDE ?=
WORKERS ?= $(if $(ARGS),0,2)
AGAINST ?= last
AGAINST_PYTHON ?=

# What people give reaches the commands as it is: make expands none of it, and the shell sees variables, not text.
export GIVEN_CHECKPOINT := $(value CHECKPOINT)
export GIVEN_ARTIFACT := artifacts/$(value NAME)
export GIVEN_PROMPT := $(value PROMPT)
export GIVEN_IMAGE := $(value IMAGE)
export GIVEN_INCLUDE := $(value INCLUDE)
export GIVEN_AGAINST := $(value AGAINST)
export GIVEN_PYTHON := $(value AGAINST_PYTHON)
unexport CHECKPOINT NAME PROMPT IMAGE INCLUDE AGAINST AGAINST_PYTHON
PROMPTS := $(if $(filter-out tools/nano/checkpoint,$(value CHECKPOINT)),,--prompts tools/nano/heldout.jsonl)

.PHONY: help engine plugins gpu test check clients bench bench-check clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# //p' Makefile

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[calib,rtx,kernels,serve,dev]'
	@touch $@

engine: $(READY)
	$(BIN)/deltart inspect "$$GIVEN_CHECKPOINT"
	$(BIN)/deltart export "$$GIVEN_CHECKPOINT" -o "$$GIVEN_ARTIFACT" --overwrite
	$(BIN)/deltart build "$$GIVEN_ARTIFACT"
	$(BIN)/deltart build "$$GIVEN_ARTIFACT" --flavour native
	$(BIN)/deltart plugins build --artifact "$$GIVEN_ARTIFACT" --gpu sm_80 sm_89 sm_120a
	$(BIN)/deltart verify "$$GIVEN_ARTIFACT" $(PROMPTS)
	$(BIN)/deltart generate "$$GIVEN_ARTIFACT" --chat --temperature 0 $${GIVEN_IMAGE:+--image "$$GIVEN_IMAGE"} \
	  -- "$$GIVEN_PROMPT"

plugins: $(READY)
	$(BIN)/deltart plugins build
	@$(BIN)/deltart plugins native $${GIVEN_INCLUDE:+--include "$$GIVEN_INCLUDE"} \
	  || { test $$? = 3 && test -z "$$GIVEN_INCLUDE" && echo 'so the C++ plugin library was not built; plans do without'; }

gpu: $(READY)
	mkdir -p .bench
	$(BIN)/python -m pytest -m gpu --junit-xml .bench/gpu.xml
	$(BIN)/python -m bench.kernels
	$(BIN)/python -m bench.engine "$$GIVEN_CHECKPOINT"

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(ARGS)

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clients: $(READY)
	PYTHON=$(abspath $(BIN))/python tests/clients/install.sh .clients
	$(BIN)/python -m pytest -m clients tests/clients

bench: $(READY)
	mkdir -p .bench
	test -f "$$GIVEN_ARTIFACT/manifest.json" || $(BIN)/deltart export "$$GIVEN_CHECKPOINT" -o "$$GIVEN_ARTIFACT"
	$(BIN)/deltart bench "$$GIVEN_ARTIFACT" --html .bench/bench.html $(PROMPTS)
	$(BIN)/python -m pip install -q -c constraints.txt onnxruntime-genai==0.18.0
	$(BIN)/python -m bench.peers --json bench/results/cpu_generation.json

bench-check: $(READY)
	@test -n "$$GIVEN_PYTHON" || test -d "$$GIVEN_AGAINST" || test -f ".bench/baselines/$$GIVEN_AGAINST.json" \
	  || $(BIN)/deltart bench "$$GIVEN_ARTIFACT" --save "$$GIVEN_AGAINST"
	@set -- --against "$$GIVEN_AGAINST"; test -z "$$GIVEN_PYTHON" || set -- --against-python "$$GIVEN_PYTHON"; \
	  $(BIN)/deltart bench "$$GIVEN_ARTIFACT" --html .bench/history.html "$$@"

clean:
	@$(PYTHON) -B -m tools.clean
