# Everything a newcomer, a maintainer and the gate need, by name.
#
#   make demo      an SEV-SNP guest, in an emulated host if need be, and its report judged
#   make check     formatting, lints and unit tests, without emulated hosts: while one writes
#   make test      what the gate runs
#   make test-all  also ten minutes of each fuzz target: hours
#   make release   the program as it is released: one file without libraries
#   make install   that, and the files of the emulated hosts, to PREFIX (default /usr/local)
#   make bench     figures, as JSON and as a table

.PHONY: setup demo check test test-all release install bench
setup:
	@tests/scripts/setup

# Static, so that it runs on any Linux and starts at once; relocated by few instructions (RELR), which
# glibc's own start-up of a static program can do since 2.36.
relr := $(shell printf 'glibc 2.36\n%s\n' "$$(getconf GNU_LIBC_VERSION)" | sort -CV && echo -C link-arg=-Wl,-z,pack-relative-relocs)
release:
	cargo rustc --release --locked -p casemate --bin casemate -- -C target-feature=+crt-static $(relr)

PREFIX ?= /usr/local
share := $(DESTDIR)$(PREFIX)/share/casemate/lab
install: release
	install -D -t $(DESTDIR)$(PREFIX)/bin target/release/casemate
	install -D -m 644 -t $(share) tools/lab/qemu/*

demo:
	@tests/scripts/demo

check:
	@tests/scripts/setup check
	@tests/scripts/check

test: setup
	@tests/scripts/test

test-all: setup
	@tests/scripts/test-all

bench:
	@tests/scripts/setup bench
	cargo bench -q --locked -p casemate-verify --bench verify
	cargo bench -q --locked -p casemate-firmware-emulate --bench instructions
	cargo bench -q --locked -p casemate-firmware-image --bench hashing
	cargo bench -q --locked -p casemate-launch --bench snp
	cargo bench -q --locked -p casemate-oracles --bench tdx_igvm
	@tests/peers/measure-snp
	@tests/peers/image
	@tests/peers/machine
	@tests/peers/disk
	@tests/peers/boot
	@tests/peers/confidential
