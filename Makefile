# What there is: make quickstart | test | check | bench | docs, and the lanes test-quality, test-comfyui, test-webui, test-old, test-methods.
#
#   PYTHON=python3.11      the Python that the environment is made with
#   TORCH_INDEX=URL        where PyTorch is taken from, such as the index of its CPU builds
#   ARGS="..."             more arguments for the quick start or pytest

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=
OLD_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.10.*/bin/python) python3.10)

VENV := .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
OLD_BIN := .venv-old/Scripts
else
BIN := $(VENV)/bin
OLD_BIN := .venv-old/bin
endif

# Tests never reach the network, and several of them run beside each other, each on one thread.
TESTING := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1
PYTEST := $(TESTING) $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
ENVIRONMENT := environment.py $(if $(TORCH_INDEX),--torch-index $(TORCH_INDEX))

.PHONY: help environment quickstart test test-core test-quality test-methods test-comfyui test-webui test-old check bench docs

help:
	@sed -n '1,6p' Makefile

environment:
	@$(PYTHON) $(ENVIRONMENT)

quickstart: environment
	@$(BIN)/python -m aprendiz quickstart $(ARGS)

# The whole suite less the slow lanes; prints the table of bad inputs and their answers at its end.
test test-core: environment
	@$(PYTEST) $(ARGS)

test-quality: environment
	@$(TESTING) $(BIN)/python -m pytest -m quality $(ARGS)

test-methods: environment
	@$(PYTEST) -m methods $(ARGS)

# Against a real ComfyUI: COMFYUI_DIR=folder COMFYUI_PYTHON=its python make test-comfyui
test-comfyui: environment
	@$(TESTING) $(BIN)/python -m pytest -m comfyui $(ARGS)

# Against a real AUTOMATIC1111, Forge or reForge: WEBUI_DIR=folder WEBUI_PYTHON=its python make test-webui
# (ControlNets in AUTOMATIC1111: WEBUI_CONTROLNET_DIR=a checkout of sd-webui-controlnet, its packages in that Python)
test-webui: environment
	@$(TESTING) $(BIN)/python -m pytest -m webui $(ARGS)

# The core suite on the oldest set of packages: Python 3.10, torch 2.1.2 (constraints-py310.txt).
test-old:
	@$(OLD_PYTHON) -c "" || { echo "make test-old needs Python 3.10: name it with OLD_PYTHON=python3.10"; exit 1; }
	@$(OLD_PYTHON) environment.py --folder .venv-old --constraints constraints-py310.txt
	@$(TESTING) $(OLD_BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

check: environment
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(TESTING) $(BIN)/python -m pytest -q tests/test_imports.py

bench: environment
	@$(BIN)/python -m benchmarks $(ARGS)

docs: environment
	@$(BIN)/python -m aprendiz.views.docs
	@$(BIN)/python -m aprendiz.views.comfy_pages
	@$(BIN)/python -m aprendiz.views.webui_texts
