PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow's own chatter would bury ours.
export TF_CPP_MIN_LOG_LEVEL ?= 3

DEMO := runs/digits-cifar_resnet20
DETECTION_DEMO := runs/demo-detection

.PHONY: demo demo-detection test test-slow test-torch test-kill lint format readme docs clean

demo: $(VENV)/installed  ## Train on the embedded digits, export, verify, show a table.
	$(BIN)/python train_main.py --recipe=digits --workdir=$(DEMO) --export=saved_model,tflite,onnx

demo-detection: $(VENV)/installed  ## Train a detector on composited scenes, export, verify, draw boxes.
	$(BIN)/python train_main.py --recipe=detect_scenes --workdir=$(DETECTION_DEMO) --epochs=2 --export=saved_model,tflite,onnx

test: $(VENV)/installed $(VENV)/browser  ## Every test but the slow ones.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not network and not torch" $(ARGS)

test-slow: $(VENV)/installed $(VENV)/browser $(VENV)/docs-installed  ## Kills, several processes, big exports, fuzzing.
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not torch" $(ARGS)

test-torch: $(VENV)/torch-installed  ## Against torchvision's and timm's own networks, and Keras on torch.
	$(BIN)/python -m pytest -m "torch" $(ARGS)

# Not part of .ci/run: it takes up to an hour.
test-kill: $(VENV)/installed  ## 100 SIGKILLs and 20 SIGTERMs, each followed by the same command again.
	PYTHONPATH=tests $(BIN)/python -m kill --output=docs/results/kill/README.md $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright --level error

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(VENV)/installed  ## Write the README's tables anew.
	$(BIN)/python docs/tables.py

docs: $(VENV)/docs-installed  ## Build the documentation as a site, in site/.
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	touch $@

# Without what torchvision and timm depend on: the first wants one exact build of torch, the second
# what it downloads with. Their networks need neither; tests/reference/torch_zoo.py imports them.
$(VENV)/torch-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[torch]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps torchvision timm
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

# The pages are tested in a real browser, which is no Python package.
$(VENV)/browser: tests/experiments/install_browser.sh | $(VENV)/installed
	sh tests/experiments/install_browser.sh
	touch $@

clean:
	rm -rf $(VENV) runs build site *.egg-info
