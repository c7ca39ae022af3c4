PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# TensorFlow's own chatter would bury ours.
export TF_CPP_MIN_LOG_LEVEL ?= 3

DEMO := runs/digits-cifar_resnet20

.PHONY: demo test test-slow lint format readme clean

demo: $(VENV)/installed  ## Train on the embedded digits, export, verify, show a table.
	$(BIN)/python train_main.py --recipe=digits --workdir=$(DEMO) --export=saved_model,tflite,onnx

test: $(VENV)/installed  ## Every test but the slow ones.
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not network" $(ARGS)

test-slow: $(VENV)/installed  ## Kills, several processes, big exports, fuzzing.
	$(BIN)/python -m pytest -m "slow" $(ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

readme: $(VENV)/installed  ## Write the README's tables anew.
	$(BIN)/python docs/tables.py

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[all]"
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
