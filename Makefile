# Two commands for a new user: `make quickstart` and `make test`. Each builds .venv by itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: quickstart test test-slow lint format docs clean
quickstart: $(VENV)/.run
	$(BIN)/python -m pujax.launch --config configs/quickstart.py

test: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --durations=20

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow --durations=5

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck $(wildcard launch/*.sh launch/*.sbatch) .ci/run

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet docs docs/_build
	@echo docs/_build/index.html

$(VENV)/.run: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.run

clean:
	rm -rf $(VENV) runs docs/_build
