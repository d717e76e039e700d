//! The smallest launches, on hosts that have the platforms: `casemate lab run --host snp` (or `tdx`)
//! runs this test's binary in an emulated one.

#![allow(unsafe_code, reason = "memory slots")]

use std::path::Path;

use casemate_kvm::error::{SevStatus, Status};
use casemate_kvm::memory::{
    GuestMemfd, MemorySlot, PAGE_SIZE, prefault, set_memory_slot, set_private,
};
use casemate_kvm::sev_device::SevDevice;
use casemate_kvm::snp::{self, Finish, Update};
use casemate_kvm::tdx::{self, Gpaw, Measure};
use casemate_kvm::trace::Interposer;
use casemate_kvm::vm::{self, vm_type};
use casemate_kvm::{KernelError, Page};
use casemate_launch::PlatformKind;
use kvm_ioctls::{Kvm, VmFd};

const PAGES: usize = 64;
const GPA: u64 = 0x10_0000;

/// A VM of this type; None, loudly, where the host has no such.
fn vm(platform: PlatformKind) -> Option<(Kvm, VmFd)> {
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    if !vm::offers(&kvm, platform) {
        eprintln!("NOT TESTED: this host launches no {} guests", platform.name());
        return None;
    }
    let vm =
        kvm.create_vm_with_type(vm_type(platform).into()).expect("a VM of a type that is offered");
    Some((kvm, vm))
}

/// Private memory at [`GPA`], and what backs its shared pages.
fn memory(vm: &VmFd) -> Result<(GuestMemfd, Vec<Page>), KernelError> {
    let shared = vec![Page::ZERO; PAGES];
    let size = PAGES as u64 * PAGE_SIZE;
    let memory = GuestMemfd::create(vm, size)?;
    let slot = MemorySlot {
        slot: 0,
        gpa: GPA,
        size,
        shared: shared.as_ptr().expose_provenance() as u64,
        private: Some((&memory, 0)),
        read_only: false,
    };
    // SAFETY: the pages outlive the VM's only vCPU, which never runs.
    unsafe { set_memory_slot(vm, &slot) }?;
    set_private(vm, GPA, size, true)?;
    Ok((memory, shared))
}

#[test]
fn an_snp_guest_is_launched_and_what_is_wrong_is_refused() {
    let Some((kvm, vm)) = vm(PlatformKind::Snp) else { return };
    let sev = SevDevice::open(Path::new(SevDevice::PATH)).expect("/dev/sev");
    assert!(sev.platform_status().expect("a status").initialised);
    let launch = || {
        snp::init(&vm, &sev, 0)?;
        if vm::SevAttributes::of(&kvm).certificate_requests {
            snp::enable_certificate_requests(&vm, &sev)?;
        }
        snp::launch_start(&vm, &sev, 0x3_0000)?;
        let _memory = memory(&vm)?;
        let vcpu = vm.create_vcpu(0).expect("a vCPU");
        let pages = vec![Page([0xc5; 4096]); 3];
        snp::launch_update(&vm, &sev, GPA, Update::Normal(&pages))?;
        snp::launch_update(&vm, &sev, GPA + 3 * PAGE_SIZE, Update::Zero(2))?;
        snp::launch_update(&vm, &sev, GPA + 5 * PAGE_SIZE, Update::Unmeasured(&pages))?;
        snp::launch_update(&vm, &sev, GPA + 8 * PAGE_SIZE, Update::Secrets)?;
        refused_pages(&vm, &sev);
        let finish = Finish { host_data: [7; 32], ..Finish::default() };
        snp::launch_finish(&vm, &sev, &finish)?;
        prefault(&vcpu, GPA + 16 * PAGE_SIZE, 16 * PAGE_SIZE)
    };
    let (outcome, events) = Interposer::recording().run(launch);
    for event in &events {
        eprintln!("{} ({}) -> {:?}", event.command, event.arguments, event.reply);
    }
    outcome.expect("a launch");
}

fn refused_pages(vm: &VmFd, sev: &SevDevice) {
    let page = [Page::ZERO];
    let twice = snp::launch_update(vm, sev, GPA, Update::Normal(&page)).expect_err("twice");
    eprintln!("{twice}");
    let outside = snp::launch_update(vm, sev, GPA / 2, Update::Normal(&page)).expect_err("no slot");
    eprintln!("{outside}");
    assert_eq!((twice.errno(), twice.command()), (libc::EIO, "KVM_SEV_SNP_LAUNCH_UPDATE"));

    let mut table = Page::ZERO;
    // One entry, leaf 1, with every feature there is: more than the processor has.
    table.0[0] = 1;
    table.0[16] = 1;
    table.0[40..56].fill(0xff);
    let update = Update::Cpuid(&mut table);
    let refused = snp::launch_update(vm, sev, GPA + 9 * PAGE_SIZE, update).expect_err("features");
    eprintln!("{refused}");
    assert_eq!(refused.status(), Status::Sev(SevStatus::INVALID_PARAM));
    assert_ne!(table.0[40..56], [0xff; 16], "the firmware says what it accepts");
    let update = Update::Cpuid(&mut table);
    snp::launch_update(vm, sev, GPA + 9 * PAGE_SIZE, update).expect("the firmware's own values");
}

#[test]
fn a_td_is_launched() {
    let Some((kvm, vm)) = vm(PlatformKind::Tdx) else { return };
    let (outcome, events) = Interposer::recording().run(|| launch_td(&kvm, &vm));
    for event in &events {
        eprintln!("{} ({}) -> {:?}", event.command, event.arguments, event.reply);
    }
    outcome.expect("a launch");
}

fn launch_td(kvm: &Kvm, vm: &VmFd) -> Result<(), KernelError> {
    vm::enable_map_gpa_range_exits(vm)?;
    vm::enable_split_irqchip(vm, 24)?;
    vm::set_apic_bus_cycle(vm, 40)?;
    vm::set_tsc_khz(vm, 1_000_000)?;
    let capabilities = tdx::capabilities(vm)?;
    let supported = kvm.get_supported_cpuid(256).expect("CPUID");
    let mut init = tdx::InitVm {
        attributes: tdx::ATTRIBUTE_SEPT_VE_DISABLE,
        xfam: capabilities.xfam & 3,
        mrconfigid: [1; 48],
        mrowner: [2; 48],
        mrownerconfig: [3; 48],
        cpuid: supported.as_slice().to_vec(),
    };
    let error = tdx::init_vm(vm, &init).expect_err("leaves that are not configurable");
    eprintln!("{error}");
    init.cpuid = capabilities.configure(supported.as_slice(), Gpaw::Bits48);
    tdx::init_vm(vm, &init)?;
    let vcpu = vm.create_vcpu(0).expect("a vCPU");
    let effective = tdx::cpuid(&vcpu)?;
    assert!(effective.iter().any(|entry| entry.function == 0x21), "the leaf that says TDX");
    vcpu.set_cpuid2(&supported).expect("CPUID");
    tdx::init_vcpu(&vcpu, GPA)?;
    let _memory = memory(vm)?;
    let pages = vec![Page([0xc5; 4096]); 3];
    tdx::init_mem_region(&vcpu, GPA, &pages, Measure::Contents)?;
    tdx::init_mem_region(&vcpu, GPA + 3 * PAGE_SIZE, &pages, Measure::Address)?;
    let outside = tdx::init_mem_region(&vcpu, GPA / 2, &pages, Measure::Address);
    eprintln!("{}", outside.expect_err("no slot"));
    tdx::finalize_vm(vm)?;
    prefault(&vcpu, GPA + 16 * PAGE_SIZE, 16 * PAGE_SIZE)
}
