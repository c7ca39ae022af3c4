PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow's own chatter would bury ours.
export TF_CPP_MIN_LOG_LEVEL ?= 3

DEMO := runs/digits-cifar_resnet20
DETECTION_DEMO := runs/demo-detection

# What `test-wheel` installs the wheel with.
WHEEL_PYTHON ?= $(PYTHON)
WHEEL_CONSTRAINTS ?= constraints.txt

.PHONY: demo demo-detection demo-page test test-slow test-torch test-tools test-gpu test-kill dist test-wheel test-oldest lint format readme docs clean

demo: $(VENV)/installed  ## Train on the embedded digits, export, verify, show a table.
	$(BIN)/python train_main.py --recipe=digits --workdir=$(DEMO) --export=saved_model,tflite,onnx

demo-detection: $(VENV)/installed  ## Train a detector on composited scenes, export, verify, draw boxes.
	$(BIN)/python train_main.py --recipe=detect_scenes --workdir=$(DETECTION_DEMO) --epochs=2 --export=saved_model,tflite,onnx

demo-page: $(VENV)/installed  ## Try the network of `make demo` in the browser.
	$(BIN)/python -m keras_resnet zoo serve $(DEMO)

test: $(VENV)/installed $(VENV)/browser  ## Every test but the slow ones.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not torch and not wheel and not tools" $(ARGS)

test-slow: $(VENV)/installed $(VENV)/browser $(VENV)/docs-installed  ## Kills, several processes, big exports, fuzzing, the site.
	$(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not torch" $(ARGS)

test-torch: $(VENV)/torch-installed  ## Against torchvision's and timm's own networks, and Keras on torch.
	$(BIN)/python -m pytest -m "torch" $(ARGS)

test-tools: $(VENV)/tools-installed  ## With MLflow, Weights & Biases and KerasHub.
	$(BIN)/python -m pytest -m "tools" $(ARGS)

test-gpu: $(VENV)/installed  ## On a GPU; with GPU_DRY_RUN=1 the same tests on the CPU.
	$(BIN)/python -m pytest -m gpu tests/gpu $(ARGS)

# Not part of .ci/run: it takes up to an hour.
test-kill: $(VENV)/installed  ## 100 SIGKILLs and 20 SIGTERMs, each followed by the same command again.
	PYTHONPATH=tests $(BIN)/python -m kill --output=docs/results/kill/README.md $(ARGS)

dist: $(VENV)/installed  ## The source distribution and the wheel, in dist/.
	rm -rf dist *.egg-info
	$(BIN)/python -m build --no-isolation --outdir dist .

# The environment stays in build/, so that it is installed and deleted only once.
test-wheel: dist  ## The metadata, and the wheel with each extra in an environment of its own and an empty folder.
	WHEEL_PYTHON=$(WHEEL_PYTHON) WHEEL_CONSTRAINTS=$(WHEEL_CONSTRAINTS) $(BIN)/python -m pytest -m wheel tests/wheel $(ARGS)

# Not part of .ci/run: it downloads another TensorFlow.
test-oldest:  ## The same with the oldest versions that setup.cfg allows.
	$(MAKE) test-wheel WHEEL_CONSTRAINTS=constraints-oldest.txt

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
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all,test]"
	touch $@

# Without what torchvision and timm depend on: the first wants one exact build of torch, the second
# what it downloads with. Their networks need neither; tests/reference/torch_zoo.py imports them.
$(VENV)/torch-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[torch]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps torchvision timm
	touch $@

# All of MLflow wants an older pyarrow; its client with a database is this package and the next two.
$(VENV)/tools-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt mlflow-skinny sqlalchemy alembic wandb keras-hub
	touch $@

$(VENV)/docs-installed: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	touch $@

# The pages are tested in a real browser, which is no Python package.
$(VENV)/browser: tests/experiments/install_browser.sh | $(VENV)/installed
	sh tests/experiments/install_browser.sh
	touch $@

clean:
	rm -rf $(VENV) runs build dist site *.egg-info
