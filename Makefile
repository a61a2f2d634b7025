# What people type. The work is done by cargo and by the program in runner/.

# What `make run` runs and on what; an empty value is the default of runner/src/main.rs.
export FUZZ GUEST CMDLINE MEM CPU EMULATOR BOOT LIMIT

TRIPLE  := --target x86_64-unknown-linux-gnu
KERNEL  := --release --package offshoot --features kernel --bin offshoot $(TRIPLE) --config .cargo/kernel.toml --target-dir target
GUESTS  := --release --package offshoot-guest --package offshoot-guests $(TRIPLE) --config .cargo/guest.toml --target-dir target/guest
OPTIONS = --guests "$$GUEST" --cmdline "$$CMDLINE" --mem "$$MEM" --cpu "$$CPU" --emulator "$$EMULATOR" \
	--boot "$$BOOT" --limit "$$LIMIT"
# Each builds without those above it.
LAYERS  := paging ept virt vmx svm vm host
SECONDS ?= 60
TARGET  ?= walker walker-thorough spaces devices image cmdline
RUNNER  = cargo build --package offshoot-runner --target-dir target && target/debug/offshoot-runner

.PHONY: help setup linux run iso test test-host bench bench-walker fuzz fuzz-demo fmt fmt-check clippy doc clean

help: ## list the targets
	@echo 'Targets:'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  %-12s %s\n' "$$name" "$$text"; done
	@echo 'Variables of run, bench and iso:'
	@echo '  GUEST="a.elf,mem=64M,budget=2s b.elf"  static x86-64 ELF files or names of sample guests, each with'
	@echo '                 options name= mem= budget= pages=4k|2m|1g|auto around= map= testdev passthrough= tenant=fork after commas (default: four samples);'
	@echo '                 "a.elf,map=x b.bin,data,name=x": guest a sees the bytes of b.bin; map=x:ro: and may not write'
	@echo '  GUEST="my.elf,forks=1000,parallel=100,reset=warm,runs=10"  a guest that freezes itself, and its forks:'
	@echo '                 also forks=N:M (they freeze again) reset=cold|auto prefetch slice=1ms freeze=2ms idle measure='
	@echo '  CMDLINE="..."  command line of the hypervisor, as in "log=debug pool=64M"; mitigations=auto|off'
	@echo '                 screen=on|off end=poweroff|reset|halt end-after=30s (of a machine that is no emulator)'
	@echo 'Variables of run and bench:'
	@echo '  MEM=512M       memory of the machine'
	@echo '  CPU=tigerlake  CPU model of the emulator; a wrong one gets a list of the right ones'
	@echo '  EMULATOR=      bochs; qemu; kvm (QEMU with the machine'"'"'s own nested VMX, or an error); bochs-kvm (KVM in'
	@echo '                 a Linux in Bochs: nested VMX on any machine, slowly); default: kvm where it is, else bochs'
	@echo '  BOOT=cd        how QEMU boots the image: cd, disk, uefi or kernel'
	@echo '  LIMIT=300s     how long the run may take'
	@echo 'Variables of fuzz:'
	@echo '  SECONDS=60     how long each target runs'
	@echo '  TARGET=spaces  one or more of walker, walker-thorough, spaces, devices, image, cmdline; default: all'

setup: ## install the emulators and tools that are missing
	@sh runner/setup.sh

linux: ## fetch the Linux that EMULATOR=bochs-kvm and a test boot: Debian's kernel, unpacked into target/linux
	@sh runner/linux.sh target/linux

run: setup ## boot the hypervisor in an emulator and run guests
	@$(RUNNER) run $(OPTIONS)

iso: setup ## make target/offshoot.iso, for BIOS and UEFI, CD and USB stick
	@$(RUNNER) iso --guests "$$GUEST" --cmdline "$$CMDLINE"

test: setup linux ## all tests: on the host, then the image in emulators
	cargo test

test-host: ## the tests that need no emulator
	cargo test --workspace --exclude offshoot-guest --exclude offshoot-guests --lib --bins --test imports

bench: setup ## count instructions in the emulator; writes target/bench/report.json
	@$(RUNNER) bench $(OPTIONS)

bench-walker: ## the page-table walker beside its peers, timed and counted; into the same report
	@sh runner/setup.sh valgrind
	cargo bench --bench walker
	cargo bench --bench walker_count

fuzz: ## the fuzz targets, one after the other, each for SECONDS=60, or TARGET=walker alone; needs a nightly toolchain
	@rustup toolchain list 2>/dev/null | grep -q nightly || { \
		echo 'fuzz: a nightly toolchain is missing: rustup toolchain install nightly' >&2; exit 1; }
	@command -v cargo-fuzz >/dev/null || cargo install --locked cargo-fuzz
	@for target in $(TARGET); do case $$target in \
		walker*) how='-s none --no-trace-compares' most=205 ;; *) how='-s none' most=600 ;; esac; \
		echo "fuzz: $$target for $(SECONDS) s"; \
		cargo +nightly fuzz run $$how $$target -- -max_len=$$most -timeout=20 -max_total_time=$(SECONDS) || exit 1; \
	done

fuzz-demo: setup ## fuzz a small parser guest by forks until the planted crash is found, with FUZZ="seed=1,crashes=1"
	@$(RUNNER) run $(OPTIONS) --name fuzz-demo --guests "parser,mem=16M,fuzz=1000000,expect=crash,$$FUZZ"

fmt: ## format the sources
	cargo fmt --all

fmt-check:
	cargo fmt --all --check

clippy: ## look for mistakes in the host code, the kernel and the guests
	cargo clippy --all-targets -- -D warnings
	cargo clippy $(KERNEL) -- -D warnings
	cargo clippy $(GUESTS) --lib --bins -- -D warnings
	for layer in $(LAYERS); do cargo check --lib --no-default-features --features $$layer || exit; done

doc: ## the documentation, in target/doc
	RUSTDOCFLAGS='-D warnings' cargo doc --no-deps

clean: ## remove everything that was built
	cargo clean
