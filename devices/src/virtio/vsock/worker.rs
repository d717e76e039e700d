//! Serves the queues: carries packets between the guest and the streams.

use std::collections::{HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::budget::{Budget, MOST_STREAMS};
use super::connection::{Connection, Readiness};
use super::door::Door;
use super::packet::{
    HEADER_LENGTH, Header, MAX_PAYLOAD, Operation, PAYLOAD_OFFSET, PacketError, Ports,
};
use crate::virtio::{Chain, DeviceControl, QueueFault, Virtqueue};

/// How often both queues are served before others on the thread have their turn.
const ROUNDS: usize = 4;

/// Refusals that wait for a buffer of the guest. While there are as many, no more of the guest's
/// packets are read.
const MOST_REFUSALS: usize = 64;

/// Ports of the host from here on belong to streams that the host began.
const FIRST_EPHEMERAL: u32 = 1 << 30;

/// Event data: what has happened.
const RECEIVE_KICK: u32 = 0;
const TRANSMIT_KICK: u32 = 1;
pub(super) const LISTENER: u32 = 2;
const STREAM: u32 = 3;
pub(super) const TIMER: u32 = 4;

/// The process at the other end is gone.
const GONE: EventSet = EventSet::HANG_UP.union(EventSet::ERROR);

/// Edges, so that a stream with data for which the guest has no room does not keep the thread awake.
const STREAM_EVENTS: EventSet =
    EventSet::IN.union(EventSet::OUT).union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);

pub(super) struct Worker {
    guest_cid: u64,
    socket: PathBuf,
    door: Door,
    budget: Budget,
    receive: Virtqueue,
    transmit: Virtqueue,
    control: DeviceControl,
    connections: HashMap<Ports, Entry>,
    by_descriptor: HashMap<RawFd, Ports>,
    /// Connections that may have something for the guest; each at most once.
    ready: VecDeque<Ports>,
    /// A buffer of the guest's for which there was no packet yet.
    buffer: Option<Chain>,
    refusals: VecDeque<Header>,
    next_port: u32,
    payload: Vec<u8>,
}

struct Entry {
    connection: Connection,
    /// Whether it stands in `ready`.
    is_ready: bool,
}

impl Worker {
    pub(super) fn new(
        guest_cid: u64,
        socket: PathBuf,
        door: Door,
        receive: Virtqueue,
        transmit: Virtqueue,
        control: DeviceControl,
    ) -> Self {
        Self {
            guest_cid,
            socket,
            door,
            budget: Budget::default(),
            receive,
            transmit,
            control,
            connections: HashMap::new(),
            by_descriptor: HashMap::new(),
            ready: VecDeque::new(),
            buffer: None,
            refusals: VecDeque::new(),
            next_port: FIRST_EPHEMERAL,
            payload: vec![0; MAX_PAYLOAD],
        }
    }

    /// Packets both ways, until there is nothing to do for now, or others have to have their turn.
    fn serve(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        for _ in 0..ROUNDS {
            let mut more = self.serve_transmit(ops)?;
            more |= self.serve_receive(ops)?;
            if !more {
                return Ok(());
            }
        }
        self.transmit.wake_again();
        Ok(())
    }

    /// Takes packets from the guest, as many as the queue holds. Returns whether there may be more.
    fn serve_transmit(&mut self, ops: &mut EventOps<'_>) -> Result<bool, QueueFault> {
        for _ in 0..self.transmit.size() {
            // With refusals that wait, buffers of the guest are what to wait for.
            if self.refusals.len() >= MOST_REFUSALS {
                self.transmit.notify_if_needed()?;
                return Ok(false);
            }
            let Some(chain) = self.transmit.next_chain()? else {
                self.transmit.notify_if_needed()?;
                return self.transmit.enable_notification();
            };
            self.take_packet(&chain, ops)?;
            self.transmit.complete(chain, 0)?;
        }
        self.transmit.notify_if_needed()?;
        Ok(true)
    }

    fn take_packet(&mut self, chain: &Chain, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        let mut bytes = [0; HEADER_LENGTH];
        chain.read(self.transmit.memory(), 0, &mut bytes)?;
        let header = match Header::from_guest(&bytes, self.guest_cid) {
            Ok(header) => header,
            Err(error) => {
                tracing::debug!(%error, "a vsock packet is dropped");
                if let PacketError::Unknown { ports, .. } = error {
                    self.refuse(ports);
                }
                return Ok(());
            }
        };
        let payload = &mut self.payload[..header.length as usize];
        chain.read(self.transmit.memory(), PAYLOAD_OFFSET, payload)?;
        match self.connections.get_mut(&header.ports) {
            Some(entry) => {
                entry.connection.receive(&header, payload);
                self.look_at(header.ports, ops);
            }
            None if header.operation == Operation::Request => self.connect(&header, ops),
            None if header.operation == Operation::Reset => {}
            None => self.refuse(header.ports),
        }
        Ok(())
    }

    /// Gives the guest what there is for it, as far as it has buffers, and at most as many as the queue
    /// holds. Returns whether there may be more.
    fn serve_receive(&mut self, ops: &mut EventOps<'_>) -> Result<bool, QueueFault> {
        for _ in 0..self.receive.size() {
            if self.refusals.is_empty() && self.ready.is_empty() {
                self.receive.notify_if_needed()?;
                return Ok(false);
            }
            let taken = self.buffer.take();
            let Some(chain) =
                taken.map_or_else(|| self.receive.next_chain(), |chain| Ok(Some(chain)))?
            else {
                self.receive.notify_if_needed()?;
                return self.receive.enable_notification();
            };
            if chain.writable_len() <= PAYLOAD_OFFSET {
                return Err(chain.malformed("a receive buffer has no room for payload"));
            }
            if let Some(header) = self.next_packet(chain.writable_len(), ops) {
                let written = self.put_packet(&chain, header)?;
                self.receive.complete(chain, written)?;
            } else {
                self.buffer = Some(chain);
            }
        }
        self.receive.notify_if_needed()?;
        Ok(true)
    }

    /// The next packet for the guest, of at most `room` bytes; its payload is then in
    /// `self.payload`.
    fn next_packet(&mut self, room: u32, ops: &mut EventOps<'_>) -> Option<Header> {
        if let Some(refusal) = self.refusals.pop_front() {
            return Some(refusal);
        }
        let room = (room as usize).saturating_sub(HEADER_LENGTH).min(MAX_PAYLOAD);
        while let Some(ports) = self.ready.pop_front() {
            let Some(entry) = self.connections.get_mut(&ports) else { continue };
            entry.is_ready = false;
            let packet = entry.connection.next_packet(&mut self.payload[..room]);
            if packet.is_some() || entry.connection.is_finished() {
                // Streams take turns.
                self.look_at(ports, ops);
            }
            if packet.is_some() {
                return packet;
            }
        }
        None
    }

    /// Returns the bytes written.
    fn put_packet(&self, chain: &Chain, header: Header) -> Result<u32, QueueFault> {
        let memory = self.receive.memory();
        chain.write(memory, 0, &header.to_guest(self.guest_cid))?;
        chain.write(memory, PAYLOAD_OFFSET, &self.payload[..header.length as usize])?;
        Ok(PAYLOAD_OFFSET + header.length)
    }

    /// The guest wants to talk to a process that listens on `<socket>_<port>`.
    fn connect(&mut self, request: &Header, ops: &mut EventOps<'_>) {
        let path = numbered(&self.socket, request.ports.host);
        let stream = self.room_for_stream().and_then(|()| {
            let stream = connect(&path)?;
            watch(&stream, ops)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) => self.add(stream, ops, |stream, window| {
                Connection::requested_by_guest(request, stream, window)
            }),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "the guest's connection is refused");
                self.refuse(request.ports);
            }
        }
    }

    /// A socket has changed its state.
    fn stream_ready(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if self.door.has(events.fd()) {
            return self.greet(events.fd(), ops);
        }
        let Some(ports) = self.by_descriptor.get(&events.fd()).copied() else { return };
        let Some(entry) = self.connections.get_mut(&ports) else { return };
        let happened = events.event_set();
        entry.connection.stream_ready(Readiness {
            readable: happened.intersects(EventSet::IN | EventSet::READ_HANG_UP | GONE),
            writable: happened.contains(EventSet::OUT),
            hung_up: happened.intersects(GONE),
        });
        self.look_at(ports, ops);
    }

    fn greet(&mut self, descriptor: RawFd, ops: &mut EventOps<'_>) {
        let Some((guest, stream)) = self.door.greet(descriptor, ops) else { return };
        let ports = Ports { host: self.free_port(guest), guest };
        self.add(stream, ops, |stream, window| {
            let mut connection = Connection::requested_by_host(ports, stream, window);
            // What follows the line may have come in the same event.
            connection.stream_ready(Readiness { readable: true, ..Readiness::default() });
            connection
        });
    }

    /// Adds a connection, which `make` makes of its stream, which is watched, and its window.
    fn add(
        &mut self,
        stream: UnixStream,
        ops: &mut EventOps<'_>,
        make: impl FnOnce(UnixStream, u32) -> Connection,
    ) {
        // There is one: there is room for a stream.
        let Some(window) = self.budget.grant() else { return unwatch(&stream, ops) };
        // What the kernel holds for a process that does not read is bounded as well. If it refuses, the
        // host's default holds.
        let _ = SockRef::from(&stream).set_send_buffer_size(window as usize);
        let connection = make(stream, window);
        let ports = connection.ports();
        self.by_descriptor.insert(connection.stream().as_raw_fd(), ports);
        self.connections.insert(ports, Entry { connection, is_ready: false });
        self.look_at(ports, ops);
    }

    /// Something happened to a connection: it may have a packet for the guest, or have ended.
    fn look_at(&mut self, ports: Ports, ops: &mut EventOps<'_>) {
        let Some(entry) = self.connections.get_mut(&ports) else { return };
        if entry.connection.is_finished() {
            unwatch(entry.connection.stream(), ops);
            self.budget.release(entry.connection.window());
            self.by_descriptor.remove(&entry.connection.stream().as_raw_fd());
            self.connections.remove(&ports);
        } else if !std::mem::replace(&mut entry.is_ready, true) {
            self.ready.push_back(ports);
        }
    }

    fn refuse(&mut self, ports: Ports) {
        self.refusals.push_back(Header::reset(ports));
    }

    fn room_for_stream(&self) -> io::Result<()> {
        if self.free_streams() > 0 {
            return Ok(());
        }
        Err(io::Error::other(format!("there are {MOST_STREAMS} streams already")))
    }

    fn free_streams(&self) -> usize {
        MOST_STREAMS.saturating_sub(self.connections.len() + self.door.waiting())
    }

    /// A port of the host for a stream to `guest` that no other stream to it has.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.wrapping_add(1).max(FIRST_EPHEMERAL);
            if !self.connections.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// Closes everything, so that nothing wakes the worker any more.
    fn stop(&mut self, ops: &mut EventOps<'_>) {
        for entry in self.connections.values() {
            unwatch(entry.connection.stream(), ops);
        }
        self.connections.clear();
        self.by_descriptor.clear();
        self.door.close(ops);
        unwatch(self.receive.kick(), ops);
        unwatch(self.transmit.kick(), ops);
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let sources = [
            Events::with_data(self.receive.kick(), RECEIVE_KICK, EventSet::IN),
            Events::with_data(self.transmit.kick(), TRANSMIT_KICK, EventSet::IN),
        ];
        for source in sources {
            if let Err(error) = ops.add(source) {
                tracing::error!(%error, "the vsock device cannot wait for events");
            }
        }
        self.door.open(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match events.data() {
            RECEIVE_KICK => self.receive.drain_kick(),
            TRANSMIT_KICK => self.transmit.drain_kick(),
            LISTENER => self.door.accept(self.free_streams(), ops),
            TIMER => self.door.tick(ops),
            _ => self.stream_ready(events, ops),
        }
        if let Err(fault) = self.serve(ops) {
            self.control.needs_reset(&fault);
            self.stop(ops);
        }
    }
}

/// Connects without waiting for a process that does not accept.
pub(super) fn connect(path: &Path) -> io::Result<UnixStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM.nonblocking().cloexec(), None)?;
    socket.connect(&SockAddr::unix(path)?)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

pub(super) fn watch(stream: &UnixStream, ops: &mut EventOps<'_>) -> io::Result<()> {
    ops.add(Events::with_data(stream, STREAM, STREAM_EVENTS)).map_err(io::Error::other)
}

pub(super) fn unwatch(source: &impl AsRawFd, ops: &mut EventOps<'_>) {
    // Fails only for what is not watched, which is as it should be afterwards.
    let _ = ops.remove(Events::empty(source));
}

/// `<socket>_<port>`
fn numbered(socket: &Path, port: u32) -> PathBuf {
    let mut path = OsString::from(socket);
    path.push(format!("_{port}"));
    path.into()
}
