PYTHON ?= python

.PHONY: check lint docs-check docs dist test test-slow test-integration test-gpu bench bench-gpu demo example

check: lint docs-check test

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m mypy
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

# The site, in which a link that leads nowhere or a name that isn't there is an error.
docs-check:
	rm -rf build/site
	OMP_NUM_THREADS=1 $(PYTHON) -m sphinx -q -W --keep-going -E -d build/doctrees docs build/site

# Where `riskaudit docs` and the wheel have it; a whole site takes the place of the one before.
docs: docs-check
	rm -rf riskaudit/site
	mv build/site riskaudit/site

# What is published, source and wheel, both with the site, which is made first. Needs `pip install build`.
dist: docs
	rm -rf dist
	$(PYTHON) -m build
	$(PYTHON) -m zipfile -l dist/*.whl | grep -q riskaudit/site/index.html

# A process per core and a thread per process: the tests' matrices are too small to share one.
test:
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n logical --dist worksteal

test-slow:
	$(PYTHON) -m pytest -m slow

# Flower and NVFlare as they run in earnest, with ports and processes of their own: one after the other.
test-integration:
	$(PYTHON) -m pytest -m integration

test-gpu:
	$(PYTHON) -m pytest -m gpu

DATA ?= ../shared/data
FILES = $(DATA)/mnist_test.npz $(DATA)/cifar10_test.npz

# The first one is the table that opens benchmarks/RESULTS.md.
bench:
	$(PYTHON) -m benchmarks.compare --data $(FILES)
	$(PYTHON) -m benchmarks.operator --data $(FILES)
	$(PYTHON) -m benchmarks.scan --data $(FILES)
	$(PYTHON) -m benchmarks.block --data $(FILES)
	$(PYTHON) -m benchmarks.coverage --data $(DATA)/mnist_test.npz --samples 1000
	$(PYTHON) -m benchmarks.coverage --model lenet-32 --data $(DATA)/cifar10_test.npz --samples 200
	$(PYTHON) -m benchmarks.joint --data $(FILES)
	$(PYTHON) -m benchmarks.compiled --data $(FILES)

# All that wants a CUDA device, on one: the tests that need it, and what is measured on it.
bench-gpu:
	$(PYTHON) -c "import sys, torch; sys.exit(None if torch.cuda.is_available() else 'make bench-gpu needs a CUDA device')"
	$(PYTHON) -m pytest -m gpu
	$(PYTHON) -m benchmarks.compare --device cuda --data $(FILES)
	$(PYTHON) -m benchmarks.operator --device cuda --data $(FILES)
	$(PYTHON) -m benchmarks.scan --device cuda --data $(FILES)
	$(PYTHON) -m benchmarks.compiled --device cuda --models lenet-28 resnet18 vit --data $(FILES)

# The committed example: the audit that `riskaudit demo` makes.
demo:
	$(PYTHON) -m riskaudit scan riskaudit/demo/digits-lenet.safetensors --data riskaudit/demo/digits.npz \
		--release gaussian:0.01 --out reports/demo \
		--format html --format pdf --format json --format csv --format md

# The committed example of a whole audit: attacks and every study on a network over its training.
example:
	$(PYTHON) -m benchmarks.full_audit --data $(DATA) --out reports/mnist-lenet
