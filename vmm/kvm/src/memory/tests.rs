//! On plain VMs of this machine's kernel, and under the interposer.

use kvm_ioctls::Kvm;

use super::*;
use crate::trace::Interposer;

fn vm() -> VmFd {
    let kvm = Kvm::new().expect("these tests need a /dev/kvm that this user may open");
    kvm.create_vm().expect("a plain VM")
}

#[test]
fn bytes_are_put_into_whole_pages() {
    assert!(Page::pages_of(&[]).is_empty());
    let pages = Page::pages_of(&[7; 4097]);
    assert_eq!(pages.len(), 2);
    assert_eq!((pages[0].0[4095], pages[1].0[0], pages[1].0[1]), (7, 7, 0));
    assert_eq!(pages.as_ptr().addr() % 4096, 0);
}

#[test]
fn the_layouts_are_those_of_kvm_bindings() {
    use kvm_bindings as theirs;
    assert_eq!(size_of::<MemoryRegion2>(), size_of::<theirs::kvm_userspace_memory_region2>());
    assert_eq!(size_of::<CreateGuestMemfd>(), size_of::<theirs::kvm_create_guest_memfd>());
    assert_eq!(size_of::<MemoryAttributes>(), size_of::<theirs::kvm_memory_attributes>());
    assert_eq!(MemoryAttributes::PRIVATE, u64::from(theirs::KVM_MEMORY_ATTRIBUTE_PRIVATE));
    assert_eq!(MemorySlot::GUEST_MEMFD, theirs::KVM_MEM_GUEST_MEMFD);
}

/// Plain VMs have guest_memfd from Linux 6.18 on; none has private memory.
#[test]
fn guest_memfd_of_this_kernel_frees_what_is_discarded() {
    let vm = vm();
    if vm.check_extension_raw(c_ulong::from(kvm_bindings::KVM_CAP_GUEST_MEMFD)) <= 0 {
        eprintln!("NOT TESTED: this kernel has no guest_memfd for plain VMs");
        return;
    }
    let memory = GuestMemfd::create(&vm, 4 * PAGE_SIZE).expect("four pages");
    memory.discard(PAGE_SIZE, 2 * PAGE_SIZE).expect("pages of it");
    let error = memory.discard(PAGE_SIZE, 1).expect_err("a byte");
    assert_eq!((error.command(), error.errno()), ("fallocate", libc::EINVAL));
    let error = GuestMemfd::create(&vm, 1).expect_err("a byte");
    assert_eq!(error.errno(), libc::EINVAL);
    // SAFETY: F_GETFD takes nothing.
    let flags = unsafe { libc::fcntl(memory.as_raw_fd(), libc::F_GETFD) };
    assert_eq!(flags, libc::FD_CLOEXEC);
}

#[test]
fn a_plain_vm_has_no_private_memory() {
    let vm = vm();
    assert!(!has_private_memory(&vm));
    let error = set_private(&vm, 0, PAGE_SIZE, true).expect_err("a plain VM");
    assert!(error.to_string().contains("(gpa 0x0, 4096 bytes, private) failed"), "{error}");
}

#[test]
fn slots_without_private_memory_are_set_and_removed() {
    let vm = vm();
    let pages = vec![Page::ZERO; 4];
    let mut slot = MemorySlot {
        slot: 0,
        gpa: 0x10_0000,
        size: 4 * PAGE_SIZE,
        shared: pages.as_ptr().expose_provenance() as u64,
        private: None,
        read_only: false,
    };
    // SAFETY: no vCPU exists that could use the pages, and they outlive the slot.
    unsafe { set_memory_slot(&vm, &slot) }.expect("a slot");
    slot.size = 0;
    // SAFETY: as above.
    unsafe { set_memory_slot(&vm, &slot) }.expect("no slot");
    drop(pages);
}

#[test]
fn private_slots_and_conversions_are_written_down() {
    let vm = vm();
    let denied = crate::trace::Reply::errno(libc::ENOMEM);
    let (outcome, events) =
        Interposer::succeeding().failing("KVM_SET_MEMORY_ATTRIBUTES", 2, denied).run(|| {
            let memory = GuestMemfd::create(&vm, 2 * PAGE_SIZE)?;
            let private = Some((&memory, PAGE_SIZE));
            let (gpa, size, shared) = (0x1000, PAGE_SIZE, 0);
            let slot = MemorySlot { slot: 3, gpa, size, shared, private, read_only: false };
            // SAFETY: nothing is called: the interposer answers.
            unsafe { set_memory_slot(&vm, &slot) }?;
            set_private(&vm, gpa, size, true)?;
            memory.discard(PAGE_SIZE, PAGE_SIZE)?;
            set_private(&vm, gpa, size, false)
        });
    assert_eq!(outcome.expect_err("the second").errno(), libc::ENOMEM);
    let arguments: Vec<&str> = events.iter().map(|event| event.arguments.as_str()).collect();
    assert_eq!(
        arguments,
        [
            "8192 bytes",
            "slot 3, gpa 0x1000, 4096 bytes, private at offset 0x1000",
            "gpa 0x1000, 4096 bytes, private",
            "hole at offset 0x1000, 4096 bytes, of a guest_memfd",
            "gpa 0x1000, 4096 bytes, shared",
        ]
    );
}
