# One verb a chore; CI uses the same words. `make help` lists them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/ready
CLIENTS := .venv-clients/ready
PIP := $(BIN)/python -m pip --disable-pip-version-check
UV := $(BIN)/uv --system-certs pip
RATE ?= 1000
SECONDS ?= 60
MINUTES ?= 10
HOST ?= http://127.0.0.1:8000

.PHONY: help demo test clients check serve load bench bench-compile bench-drift bench-lake bench-shadow bench-overload soak prove kinds elec lock clean prove-sequential

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

demo: $(READY) ## train, prove, serve, load, watch: the whole way (DATA=rows.csv TARGET=column for your own table)
	@$(BIN)/coppice demo $(if $(DATA),--data '$(DATA)') $(if $(TARGET),--target '$(TARGET)')

test: $(READY) $(CLIENTS) ## every law, at a size for every day
	@echo "== test: laws at everyday size"
	@$(BIN)/python -m pytest

clients: $(CLIENTS) ## the environment of the clients that tests ask the server with; `make test` makes it too

check: $(READY) ## lint, format, types, import contracts
	@echo "== check: ruff" && $(BIN)/ruff check .
	@echo "== check: format" && $(BIN)/ruff format --check .
	@echo "== check: types" && $(BIN)/mypy
	@echo "== check: imports" && $(BIN)/lint-imports

serve: $(READY) ## serve what ./var/releases routes
	@$(BIN)/coppice serve

load: $(READY) ## Locust at RATE=1000 for SECONDS=60 against HOST; its exit code is the service level's
	@mkdir -p var/load
	@$(BIN)/locust -f loadtests/locustfile.py --headless --only-summary --users 50 --spawn-rate 50 --run-time $(SECONDS)s \
		--rate $(RATE) --host $(HOST) --csv var/load/locust --html var/load/report.html --summary var/load/summary.json

bench: $(READY) ## wrk: bare app, Coppice (a shadow, two workers, batches), the naive endpoint, interleaved
	@command -v wrk > /dev/null || { echo "make bench needs wrk: apt-get install wrk" >&2; exit 2; }
	@$(BIN)/python -m loadtests.bench

bench-shadow: $(READY) ## the same load with and without a shadow on every request; writes loadtests/results/shadows.md
	@command -v h2load > /dev/null || { echo "make bench-shadow needs h2load: apt-get install nghttp2-client" >&2; exit 2; }
	@$(BIN)/python -m loadtests.shadows

bench-overload: $(READY) ## h2load at three times the capacity, an open loop; writes loadtests/results/overload.md
	@command -v h2load > /dev/null || { echo "make bench-overload needs h2load: apt-get install nghttp2-client" >&2; exit 2; }
	@$(BIN)/python -m loadtests.overload

soak: $(READY) ## mixed traffic for MINUTES=10 while routes change: memory, descriptors, errors, the log's books
	@$(BIN)/python -m loadtests.soak --minutes $(MINUTES)

bench-compile: $(READY) ## compiled forms beside the native library and the usual ONNX conversion; writes loadtests/results/compile.md
	@$(BIN)/python -m compile.bench

bench-lake: $(READY) ## compaction beside a plain write_table, the daily questions to ten million rows; writes loadtests/results/lake.md
	@$(BIN)/python -m monitoring.lake_bench

bench-drift: $(READY) ## drift: false alarms and power, beside Evidently's defaults; writes loadtests/results/drift.md
	@$(BIN)/python -m monitoring.drift_bench

prove: $(READY) $(CLIENTS) ## every law at full size; writes docs/prove.md and docs/kinds.md
	@LAWS=full $(BIN)/python -m pytest --page=docs/prove.md --kinds=docs/kinds.md

prove-sequential: $(READY) ## 4,000 made-up experiments a line, looked at after every batch; writes docs/sequential.md's tables
	@$(BIN)/python -m monitoring.sequential_proof

kinds: $(READY) ## each kind of model against its own library, at full size; writes docs/kinds.md
	@LAWS=full $(BIN)/python -m pytest tests/compile/test_kinds.py --kinds=docs/kinds.md

elec: $(READY) ## two years of a real market through the server: drift, performance, estimates by week; writes docs/elec.md
	@$(BIN)/python -m monitoring.elec

lock: $(READY) ## resolve requirements/*.txt anew from pyproject.toml
	@for role in serve dev; do \
		$(UV) compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
			--custom-compile-command "make lock" pyproject.toml $$([ $$role = dev ] && echo --extra dev) -o requirements/$$role.txt; done
	@$(UV) compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" requirements/clients.in -o requirements/clients.txt
	@printf "pip\nuv\n" | $(UV) compile -q --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
		--custom-compile-command "make lock" - -o requirements/bootstrap.txt

clean: ## remove what was built here; var/ stays
	@rm -rf .venv .venv-clients build *.egg-info compile/_kernel*.so serving/_quick*.so

$(READY): requirements/bootstrap.txt requirements/dev.txt pyproject.toml $(wildcard compile/*.[ch] serving/*.[ch])
	@echo "== set-up: .venv with $(PYTHON)"
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version)'
	@$(PYTHON) -m venv --clear .venv
	@$(PIP) install -q --require-hashes -r requirements/bootstrap.txt
	@echo "== set-up: packages from requirements/dev.txt"
	@$(UV) install -q --python $(BIN)/python --require-hashes -r requirements/dev.txt || { \
		echo "== set-up: uv could not; trying pip, which is slower" && $(PIP) install -q --require-hashes -r requirements/dev.txt; }
	@echo "== set-up: coppice, with its kernel"
	@$(PIP) install -q --no-deps --no-build-isolation -e .
	@touch $(READY)

$(CLIENTS): requirements/clients.txt | $(READY)
	@echo "== set-up: .venv-clients from requirements/clients.txt"
	@$(PYTHON) -m venv --clear .venv-clients
	@$(UV) install -q --python .venv-clients/bin/python --require-hashes -r requirements/clients.txt || { \
		echo "== set-up: uv could not; trying pip, which is slower" && \
		.venv-clients/bin/python -m pip --disable-pip-version-check install -q --require-hashes -r requirements/clients.txt; }
	@touch $(CLIENTS)
