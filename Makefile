# make demo   the main job, live, on a fresh Debian machine (installs what it needs)
# make test   all tests, on real guests too
# make test-long  a hundred random runs on watched guests, about ten minutes; 1,000 looks at clean guests of each kernel; kernels that Debian does not ship, built first
# make check  formatting, vet, house rules, short tests
# make bench  the numbers of docs/performance.md: of memory; bench-disk and figure7, of disks
GO ?= go
export CGO_ENABLED = 0
# A distribution's Go may be told not to fetch the version that go.mod asks for.
export GOTOOLCHAIN ?= auto

.PHONY: build install demo deps go test check short bench bench-disk figure7 fuzz clean test-long test-xen

build: bin/vmscope

bin/vmscope: $(shell find . -name '*.go' -not -name '*_test.go' -not -path './internal/guestlab/*') $(wildcard docs/checks/*.md) go.mod go.sum
	$(GO) build -trimpath -ldflags '-s -w' -o $@ ./cmd/vmscope

install: build
	install -D -m 755 bin/vmscope $(DESTDIR)$(or $(PREFIX),/usr/local)/bin/vmscope

# What the tests and the demo need besides Go: QEMU, and tools to unpack
# kernels. Kernels come from Debian's mirror, by package name, into a cache.
deps:
	@scripts/deps

demo:
	@scripts/deps demo
	@$(MAKE) --no-print-directory build
	@scripts/demo

test: deps
	@scripts/test

test-long: deps
	@scripts/test-long

# On a real Xen host, in QEMU's software emulation.
test-xen: deps
	VMSCOPE_XEN=1 $(GO) test -timeout 60m -count 1 -run Xen -v ./cmd/vmscope

check:
	@scripts/check

short:
	$(GO) test -short ./...

bench: deps build
	$(GO) run ./bench

# ROUNDS and SAMPLES make it shorter.
bench-disk: deps
	$(GO) run ./bench/disk -doc docs/performance.md $(if $(ROUNDS),-rounds $(ROUNDS))

figure7: deps
	$(GO) run ./bench/figure7 -svg docs/figure7.svg -csv docs/figure7.csv -doc docs/performance.md $(if $(SAMPLES),-samples $(SAMPLES))

clean:
	rm -rf bin
