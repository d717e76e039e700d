//! An honest host.

use casemate_launch::PlatformKind::{Plain, Snp, Tdx};

use crate::guest::{payloads, plan};
use crate::harness::host::Host;
use crate::harness::{End, run};

#[test]
fn the_kernel_starts() {
    for platform in [Plain, Snp, Tdx] {
        let start = std::time::Instant::now();
        let run = run(&plan(platform, &payloads()), Host::default());
        eprintln!("{platform:?} {:?} {:?} {:?}", run.end, run.machine().counts, start.elapsed());
        assert_eq!(run.end, End::Kernel, "{platform:?}");
    }
}
