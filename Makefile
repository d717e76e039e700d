# Everything a newcomer, a maintainer and the gate need, by name.
#
#   make release  the program as it is released: one file without libraries
#   make demo     the main job, on the best platform that this machine has
#   make test     all tests
#   make bench    figures, as JSON and as a table

.PHONY: setup release demo test bench
setup:
	@tests/setup

# Static, so that it runs on any Linux and starts at once; relocated by few instructions (RELR).
release:
	cargo rustc --release --locked -p casemate --bin casemate -- \
		-C target-feature=+crt-static -C link-arg=-Wl,-z,pack-relative-relocs

demo: setup
	@tests/demo

# After the set-up nothing is lacking: a test that finds no emulated host fails. Tests that boot have limits of
# their own; whatever else would wait for ever ends with its program, which is named then.
LIMITED := timeout --foreground --verbose 30m
test: setup
	@CASEMATE_REQUIRE_LAB=1 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(LIMITED)" \
		timeout --foreground 2h cargo test --workspace --locked || \
		{ echo "test: FAILED, see above"; exit 1; }
	@echo "test: all passed"

bench:
	@tests/setup bench
	cargo bench -q --locked -p casemate-attest --bench verify
	cargo bench -q --locked -p casemate-firmware-emulate --bench instructions
	cargo bench -q --locked -p casemate-firmware-image --bench hashing
	cargo bench -q --locked -p casemate-launch --bench snp
	cargo bench -q --locked -p casemate-launch --bench tdx_igvm
	@tests/bench/measure-snp
	@tests/bench/machine
	@tests/bench/disk
	@tests/bench/boot
	@tests/bench/confidential
