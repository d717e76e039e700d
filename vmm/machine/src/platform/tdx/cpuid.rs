//! CPUID and TSC of a TD. Most leaves are the TDX module's, whatever the host says; those of KVM's
//! own reach the guest through it.

use kvm_bindings::kvm_cpuid_entry2;

/// KVM's features (Linux `asm/kvm_para.h`).
const KVM_FEATURES: u32 = 0x4000_0001;

/// Of these the ones for which the host need not write the guest's private memory, as it would for
/// kvmclock, steal time and asynchronous page faults: NOP_IO_DELAY, PV_UNHALT, PV_SEND_IPI,
/// POLL_CONTROL, PV_SCHED_YIELD.
const WITHOUT_MEMORY: u32 = 1 << 1 | 1 << 7 | 1 << 11 | 1 << 12 | 1 << 13;

/// Takes from a vCPU's CPUID what no TD can use.
pub(super) fn adapt(entries: &mut [kvm_cpuid_entry2]) {
    for entry in entries.iter_mut().filter(|entry| entry.function == KVM_FEATURES) {
        entry.eax &= WITHOUT_MEMORY;
    }
}

/// The TSC frequency for a TD on a host of this one, both in kHz: the nearest step of the TDX module,
/// which counts in 25 MHz, from 100 MHz to 10 GHz. A host's own is a multiple of half a step, give or
/// take what its kernel calibrated.
pub(super) fn tsc_khz(host: u32) -> u32 {
    const STEP: u32 = 25_000;
    (host.saturating_add(STEP / 2) / STEP * STEP).clamp(4 * STEP, 400 * STEP)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_that_need_private_memory_are_not_offered() {
        let features = |eax| kvm_cpuid_entry2 { function: KVM_FEATURES, eax, ..Default::default() };
        let mut entries = [features(u32::MAX)];
        adapt(&mut entries);
        let kvmclock = 1 | 1 << 3;
        let steal_time = 1 << 5;
        assert_eq!(entries[0].eax & (kvmclock | steal_time), 0);
        assert_eq!(entries[0].eax, WITHOUT_MEMORY);
    }

    #[test]
    fn the_frequency_is_one_that_the_module_takes() {
        assert_eq!(tsc_khz(2_899_998), 2_900_000);
        assert_eq!(tsc_khz(2_400_002), 2_400_000);
        assert_eq!(tsc_khz(2_112_500), 2_125_000);
        assert_eq!(tsc_khz(u32::MAX), 10_000_000);
        assert_eq!(tsc_khz(1_000_000), 1_000_000);
        assert_eq!(tsc_khz(0), 100_000);
    }
}
