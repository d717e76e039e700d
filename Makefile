# Everything a newcomer, a maintainer and the gate need, by name.
#
#   make demo     the main job, on the best platform that this machine has
#   make test     all tests
#   make bench    figures, as JSON and as a table

.PHONY: setup demo test bench
setup:
	@tests/setup

demo: setup
	@tests/demo

test: setup
	cargo test --workspace --locked

bench: setup
	cargo bench -q --locked -p casemate-attest --bench verify
	cargo bench -q --locked -p casemate-launch --bench snp
	cargo bench -q --locked -p casemate-launch --bench tdx_igvm
	@tests/bench/measure-snp
	@tests/bench/machine
