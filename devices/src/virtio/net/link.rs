//! The host's end of a network interface: one queue of a tap, and how packets move between it and
//! guest memory. All of the interface's unsafe code is here.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;
use vm_memory::VolatileSlice;

use super::packet::{HEADER_LEN, Header};
use crate::memory::DeviceMemory;
use crate::virtio::{Chain, QueueFault};

/// A file descriptor that carries one packet, with its header, per read or write.
pub trait Link: AsFd + Send + Sync {
    /// What packets for the guest may leave undone: TUN_F_CSUM and others.
    ///
    /// # Errors
    /// If the host refuses.
    fn set_offloads(&self, offloads: u32) -> io::Result<()>;

    /// Whether the host spreads packets for the guest onto this queue. It does at first.
    ///
    /// # Errors
    /// If the host refuses.
    fn set_attached(&self, attached: bool) -> io::Result<()>;

    /// Its name on the host.
    fn name(&self) -> &str;

    /// Whether the host has taken it away. Then no packet will come or go any more.
    fn is_gone(&self) -> bool;
}

/// Why a tap cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// No such name on Linux.
    #[error("\"{0}\" is not the name of a network interface: it has 1 to 15 bytes")]
    Name(String),
    /// The device node.
    #[error("cannot open /dev/net/tun")]
    Open(#[source] io::Error),
    /// The interface.
    #[error(
        "cannot attach to the tap \"{name}\" with {queues} queues (is it in use, another user's, \
         or made {} multi_queue?)",
        if *queues > 1 { "without" } else { "with" }
    )]
    Attach {
        /// Its name.
        name: String,
        /// Queues wanted.
        queues: u16,
        /// The reason.
        #[source]
        source: io::Error,
    },
    /// Socket, or the request for the MTU.
    #[error("cannot find out the MTU of the tap \"{name}\"")]
    Mtu {
        /// Its name.
        name: String,
        /// The reason.
        #[source]
        source: io::Error,
    },
}

/// One queue of a tap.
#[derive(Debug)]
pub struct Tap {
    name: String,
    file: File,
    attached: Mutex<bool>,
}

impl Tap {
    /// Attaches to the tap called `name` with so many queues; makes it if there is none and the
    /// process may.
    ///
    /// # Errors
    /// If there is no such tap, or it is not the caller's to use.
    pub fn open(name: &str, queues: u16) -> Result<Vec<Arc<dyn Link>>, TapError> {
        let queue = |_| Self::open_queue(name, queues).map(|tap| Arc::new(tap) as Arc<dyn Link>);
        (0..queues).map(queue).collect()
    }

    fn open_queue(name: &str, queues: u16) -> Result<Self, TapError> {
        let many = if queues > 1 { libc::IFF_MULTI_QUEUE } else { 0 };
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | many;
        let mut request = interface_request(name, flags)?;
        let mut header_len = HEADER_LEN;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .map_err(TapError::Open)?;
        // SAFETY: TUNSETIFF reads an ifreq and writes it back to the address given, which `request`
        // is.
        let attached = unsafe { checked_ioctl(&file, libc::TUNSETIFF, (&raw mut request).cast()) };
        attached
            // SAFETY: TUNSETVNETHDRSZ reads a 32-bit integer at the address given, which `header_len`
            // is.
            .and_then(|()| unsafe {
                checked_ioctl(&file, libc::TUNSETVNETHDRSZ, (&raw mut header_len).cast())
            })
            .map_err(|source| TapError::Attach { name: name.to_owned(), queues, source })?;
        Ok(Self { name: name.to_owned(), file, attached: Mutex::new(true) })
    }

    /// The MTU of the interface called `name`, in bytes.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn mtu(name: &str) -> Result<u16, TapError> {
        let mut request = interface_request(name, 0)?;
        let refused = |source| TapError::Mtu { name: name.to_owned(), source };
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").map_err(refused)?;
        // SAFETY: SIOCGIFMTU reads an ifreq and writes it back to the address given, which
        // `request` is.
        unsafe { checked_ioctl(&socket, libc::SIOCGIFMTU, (&raw mut request).cast()) }
            .map_err(refused)?;
        // SAFETY: the kernel filled in this field of the union, and any bits are a valid integer.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        u16::try_from(mtu).map_err(|error| refused(io::Error::other(error)))
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Link for Tap {
    fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        let number = ptr::without_provenance_mut(offloads as usize);
        // SAFETY: TUNSETOFFLOAD takes a number, and touches no memory of ours.
        unsafe { checked_ioctl(&self.file, libc::TUNSETOFFLOAD, number) }
    }

    fn set_attached(&self, attached: bool) -> io::Result<()> {
        let mut state = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if *state == attached {
            return Ok(());
        }
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        let mut request = request(flag);
        // SAFETY: TUNSETQUEUE reads an ifreq at the address given, which `request` is.
        unsafe { checked_ioctl(&self.file, libc::TUNSETQUEUE, (&raw mut request).cast()) }?;
        *state = attached;
        Ok(())
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn is_gone(&self) -> bool {
        let mut request = request(0);
        // SAFETY: TUNGETIFF writes an ifreq to the address given, which `request` is.
        let asked =
            unsafe { checked_ioctl(&self.file, libc::TUNGETIFF, (&raw mut request).cast()) };
        // The kernel's answer for a file that no interface belongs to (any more).
        asked.is_err_and(|error| error.raw_os_error() == Some(libc::EBADFD))
    }
}

/// A request with `flags`, about the interface called `name`.
fn interface_request(name: &str, flags: libc::c_int) -> Result<libc::ifreq, TapError> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ || name.contains(['\0', '/']) {
        return Err(TapError::Name(name.to_owned()));
    }
    let mut request = request(flags);
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

#[expect(clippy::cast_possible_truncation, reason = "the flags are made to fit the field")]
fn request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: all fields of ifreq are integers, arrays of them, or pointers, for which zeroes are
    // valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

/// # Safety
/// `argument` must be what `request` takes: a number, or the address of what it reads and writes.
unsafe fn checked_ioctl(
    file: impl AsFd,
    request: libc::Ioctl,
    argument: *mut libc::c_void,
) -> io::Result<()> {
    // SAFETY: the caller vouches for the argument; the descriptor is open.
    let result = unsafe { libc::ioctl(file.as_fd().as_raw_fd(), request, argument) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives a packet into the writable bytes of `chains`, in order; the bytes it has with its
/// header, or `None` if it was longer than the chains and is lost.
///
/// # Errors
/// The outer one if the guest took the pages back, the inner one if there is no packet
/// ([`io::ErrorKind::WouldBlock`]) or the host failed.
pub(super) fn receive<'a>(
    link: &dyn Link,
    memory: &DeviceMemory,
    chains: impl Iterator<Item = &'a Chain>,
) -> Result<io::Result<Option<usize>>, QueueFault> {
    // One byte more than there is room, to see that a packet is too long.
    let mut spill = [0u8; 1];
    let mut room = 0;
    let mut iovecs = Vec::with_capacity(64);
    // Until the call has returned.
    let mut loans: SmallVec<[_; 1]> = SmallVec::new();
    for chain in chains {
        loans.push(chain.lend(memory, true)?);
        chain.for_each_writable(memory, 0, usize::MAX, |slice| {
            room += slice.len();
            iovecs.push(iovec(&slice));
            Ok(())
        })?;
    }
    iovecs.push(libc::iovec { iov_base: spill.as_mut_ptr().cast(), iov_len: spill.len() });
    let fd = link.as_fd().as_raw_fd();
    // SAFETY: the buffers are slices of guest memory, which `memory` keeps mapped during the call
    // and into which nothing in this process holds references, and `spill`, which is borrowed by
    // nobody else. At most as many are passed as there are.
    let result = unsafe { libc::readv(fd, iovecs.as_ptr(), count(&iovecs)) };
    let received = usize::try_from(result).map_err(|_| io::Error::last_os_error());
    Ok(received.map(|bytes| (bytes <= room).then_some(bytes)))
}

/// Sends the packet in `chain`, with `header` in place of the one that stands before it.
///
/// # Errors
/// The outer one if the guest took the pages back, the inner one if the host does not take it.
pub(super) fn send(
    link: &dyn Link,
    memory: &DeviceMemory,
    mut header: Header,
    chain: &Chain,
) -> Result<io::Result<()>, QueueFault> {
    let mut iovecs = Vec::with_capacity(chain.readable().len() + 1);
    iovecs.push(libc::iovec { iov_base: header.as_mut_ptr().cast(), iov_len: header.len() });
    let _loan = chain.lend(memory, false)?;
    chain.for_each_readable(memory, HEADER_LEN, usize::MAX, |slice| {
        iovecs.push(iovec(&slice));
        Ok(())
    })?;
    let fd = link.as_fd().as_raw_fd();
    // SAFETY: the buffers are `header`, and slices of guest memory, which `memory` keeps mapped
    // during the call; the kernel only reads them. At most as many are passed as there are.
    let result = unsafe { libc::writev(fd, iovecs.as_ptr(), count(&iovecs)) };
    Ok(if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) })
}

fn iovec(slice: &VolatileSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }
}

/// The number of buffers for one call. The kernel refuses more than 1024 of them, and the packet
/// is dropped.
fn count(iovecs: &[libc::iovec]) -> i32 {
    i32::try_from(iovecs.len()).unwrap_or(0)
}
