//! Network interfaces (VIRTIO 1.2, section 5.1): a tap on the host.
//!
//! ```text
//! tap ─► Receive ─► chains of the receive queue, with readv
//! tap ◄─ Transmit ◄─ checked header + chain of the transmit queue, with writev
//! ```
//!
//! Where the host has vhost-net, the guest's memory is all shared, and no rate is limited, the
//! host's kernel serves the queues instead.

mod carrier;
mod control;
#[expect(unsafe_code, reason = "hands guest memory to readv and writev; ioctls of taps")]
pub mod link;
pub mod packet;
mod receive;
mod transmit;
mod vhost;
mod worker;

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN,
    VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use vm_memory::GuestMemory;
use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use super::service::Service;
use super::vhost::Watch;
use super::{Activation, ActiveQueue, DeviceKind, VirtioDevice, Virtqueue};
use crate::io_thread::{IoThread, SubscriberId, Worker as Subscriber};
use crate::memory::DeviceMemory;
use crate::rate_limit::{Limits, RateLimit, Throttle};
use carrier::Carrier;
use control::Control;
pub use link::{Link, Tap, TapError};
use packet::{HEADER_LEN, MAX_PACKET, Offloads};
use receive::Receive;
use transmit::Transmit;
use vhost::VhostNet;
use worker::Worker;

/// Packets that a queue holds, if each has one buffer.
const QUEUE_SIZE: u16 = 256;

/// Requests that the control queue holds.
const CONTROL_QUEUE_SIZE: u16 = 64;

/// What an interface is like, beside its tap.
#[derive(Clone, Copy, Debug)]
pub struct NetOptions {
    /// Address of the guest's interface.
    pub mac: [u8; 6],
    /// Longest IP packet without segmentation, in bytes: the tap's ([`Tap::mtu`]).
    pub mtu: u16,
    /// Limits of packets from the host to the guest, for all queues together.
    pub receive: Limits,
    /// Limits of packets from the guest to the host, for all queues together.
    pub transmit: Limits,
    /// Let the host's kernel serve the queues where it can.
    pub vhost: bool,
}

/// `struct virtio_net_config` (section 5.1.4), up to the MTU.
#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Config {
    mac: [u8; 6],
    status: U16,
    max_virtqueue_pairs: U16,
    mtu: U16,
}

/// A network interface.
pub struct Net {
    links: Vec<Arc<dyn Link>>,
    options: NetOptions,
    queue_sizes: Vec<u16>,
    receive: Option<Arc<RateLimit>>,
    transmit: Option<Arc<RateLimit>>,
    threads: Vec<IoThread>,
    carrier: Carrier,
    /// One for each pair, or none.
    vhost: Vec<VhostNet>,
    workers: Vec<(IoThread, SubscriberId)>,
}

impl Net {
    /// An interface with a pair of queues for each of `links`. Pair by pair is served on one of
    /// `threads`, in turn.
    #[must_use]
    pub fn new(links: Vec<Arc<dyn Link>>, options: NetOptions, threads: Vec<IoThread>) -> Self {
        let mut queue_sizes = vec![QUEUE_SIZE; 2 * links.len()];
        if links.len() > 1 {
            queue_sizes.push(CONTROL_QUEUE_SIZE);
        }
        let receive = RateLimit::new(options.receive);
        let transmit = RateLimit::new(options.transmit);
        let vhost = if options.vhost && receive.is_none() && transmit.is_none() {
            let instances = links.iter().map(|_| VhostNet::open()).collect::<Result<_, _>>();
            instances
                .inspect(|_| tracing::info!("packets can go through vhost-net"))
                .inspect_err(|error| tracing::info!(%error, "no vhost-net: packets go through us"))
                .unwrap_or_default()
        } else {
            Vec::new()
        };
        let workers = Vec::new();
        let carrier = Carrier::default();
        Self { links, options, queue_sizes, receive, transmit, threads, carrier, vhost, workers }
    }

    fn start(&mut self, mut activation: Activation) -> io::Result<()> {
        let features = activation.features;
        let has = |bit: u32| features & 1 << bit != 0;
        let service = Arc::new(Service::new(activation.control.clone()));
        let first =
            self.links.first().ok_or_else(|| io::Error::other("an interface without tap"))?;
        first.set_offloads(tap_offloads(features))?;
        let pairs = if has(VIRTIO_NET_F_MQ) { self.links.len() } else { 1 };
        if self.links.len() > 1 {
            control::attach(&self.links, 1)?;
        }
        // Section 5.1.2: the control queue stands behind the pairs that the driver knows of.
        let control = u16::try_from(2 * pairs).unwrap_or(u16::MAX);
        if has(VIRTIO_NET_F_CTRL_VQ) {
            let queue = activation.take_queue(control)?;
            let links = self.links[..pairs].to_vec();
            self.add(0, Box::new(Control { service: Arc::clone(&service), queue, links }))?;
        }
        for pair in 0..pairs {
            let index = 2 * pair;
            let mut take = |index| activation.queues.get_mut(index).and_then(Option::take);
            match (take(index), take(index + 1)) {
                (Some(receive), Some(transmit)) => {
                    let queues = [receive, transmit];
                    self.start_pair(pair, queues, &service, &activation.memory, features)?;
                }
                // A driver need not use all pairs.
                _ if pair > 0 => {}
                _ => return Err(io::Error::other("the driver did not enable the first queues")),
            }
        }
        Ok(())
    }

    fn start_pair(
        &mut self,
        pair: usize,
        queues: [ActiveQueue; 2],
        service: &Arc<Service>,
        memory: &Arc<DeviceMemory>,
        features: u64,
    ) -> io::Result<()> {
        let link = Arc::clone(&self.links[pair]);
        let vhost = self.vhost.get_mut(pair).filter(|vhost| vhost.knows(features));
        if let (Some(vhost), Some(plain)) = (vhost, memory.physical_memory()) {
            let (carrier, control) = (self.carrier.clone(), service.control().clone());
            let tap = Arc::clone(&link);
            let lost = Box::new(move || carrier.is_lost(&*tap, &control));
            let watch = Watch::new(service, queues[0].index, lost)?;
            match vhost.start(plain, features, queues.each_ref(), &watch.errors, &*link) {
                Ok(()) => return self.add(pair, Box::new(watch)),
                Err(error) => {
                    tracing::warn!(%error, "vhost-net does not take the queues of pair {pair}");
                    vhost.stop();
                }
            }
        }
        let [receive, transmit] =
            queues.map(|queue| Virtqueue::new(queue, Arc::clone(memory), features));
        let has = |bit: u32| features & 1 << bit != 0;
        let segments = has(VIRTIO_NET_F_GUEST_TSO4) || has(VIRTIO_NET_F_GUEST_TSO6);
        // With Ethernet header and VLAN tag.
        let packet = if segments { MAX_PACKET } else { u32::from(self.options.mtu) + 18 };
        let worker = Worker {
            service: Arc::clone(service),
            link,
            carrier: self.carrier.clone(),
            receive: Receive::new(
                receive,
                Throttle::new(self.receive.clone())?,
                has(VIRTIO_NET_F_MRG_RXBUF),
                (HEADER_LEN + packet) as usize,
            ),
            transmit: Transmit::new(
                transmit,
                Throttle::new(self.transmit.clone())?,
                Offloads {
                    checksum: has(VIRTIO_NET_F_CSUM),
                    tso4: has(VIRTIO_NET_F_HOST_TSO4),
                    tso6: has(VIRTIO_NET_F_HOST_TSO6),
                    ecn: has(VIRTIO_NET_F_HOST_ECN),
                },
            ),
        };
        self.add(pair, Box::new(worker))
    }

    /// Runs what serves a pair.
    fn add(&mut self, pair: usize, worker: Subscriber) -> io::Result<()> {
        let thread = self.threads.iter().cycle().nth(pair).cloned();
        let thread = thread.ok_or_else(|| io::Error::other("no thread to serve the interface"))?;
        let id = thread.add(worker)?;
        self.workers.push((thread, id));
        Ok(())
    }
}

/// What packets for the guest may leave undone, if the driver negotiated `features`.
fn tap_offloads(features: u64) -> u32 {
    let bits = [
        (VIRTIO_NET_F_GUEST_CSUM, libc::TUN_F_CSUM),
        (VIRTIO_NET_F_GUEST_TSO4, libc::TUN_F_TSO4),
        (VIRTIO_NET_F_GUEST_TSO6, libc::TUN_F_TSO6),
        (VIRTIO_NET_F_GUEST_ECN, libc::TUN_F_TSO_ECN),
    ];
    // Section 5.1.3.1: without checksums there are no segments.
    if features & 1 << VIRTIO_NET_F_GUEST_CSUM == 0 {
        return 0;
    }
    let granted = bits.into_iter().filter(|(feature, _)| features & 1 << feature != 0);
    granted.fold(0, |offloads, (_, offload)| offloads | offload)
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        DeviceKind::Net
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        let bits = [
            VIRTIO_NET_F_CSUM,
            VIRTIO_NET_F_GUEST_CSUM,
            VIRTIO_NET_F_MTU,
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_GUEST_TSO4,
            VIRTIO_NET_F_GUEST_TSO6,
            VIRTIO_NET_F_GUEST_ECN,
            VIRTIO_NET_F_HOST_TSO4,
            VIRTIO_NET_F_HOST_TSO6,
            VIRTIO_NET_F_HOST_ECN,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
        ];
        let many = [VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MQ];
        let many = many.into_iter().filter(|_| self.links.len() > 1);
        bits.into_iter().chain(many).fold(0, |features, bit| features | 1 << bit)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = if self.carrier.is_down() { 0 } else { VIRTIO_NET_S_LINK_UP };
        let config = Config {
            mac: self.options.mac,
            status: u16::try_from(status).unwrap_or(0).into(),
            max_virtqueue_pairs: u16::try_from(self.links.len()).unwrap_or(u16::MAX).into(),
            mtu: self.options.mtu.into(),
        };
        super::read_fields(config.as_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> io::Result<()> {
        self.start(activation).inspect_err(|_| self.reset())
    }

    fn reset(&mut self) {
        self.vhost.iter_mut().for_each(VhostNet::stop);
        for (thread, id) in self.workers.drain(..) {
            // Fails only if the thread has ended, and all of its workers with it.
            let _ = thread.remove(id);
        }
    }
}
