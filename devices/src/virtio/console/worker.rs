//! Serves the queues: carries bytes between the guest and the host, and waits for neither.

use std::fs::File;
use std::io::ErrorKind;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vm_memory::{ReadVolatile, VolatileMemoryError};

use crate::outlet::Outlet;
use crate::virtio::{Chain, DeviceControl, QueueFault, Virtqueue};

/// Event data: what has happened.
const RECEIVE_KICK: u32 = 0;
const TRANSMIT_KICK: u32 = 1;
const INPUT: u32 = 2;
const ROOM: u32 = 3;

/// Bytes that are copied from a chain to the output at once.
const PIECE: usize = 4096;

pub(super) struct Worker {
    receive: Virtqueue,
    transmit: Virtqueue,
    /// `None` when it has ended.
    input: Option<File>,
    /// Whether the thread waits for the input: only while the guest has room for it.
    input_awaited: bool,
    /// It is always ready, and cannot be waited for: a regular file.
    always_ready: bool,
    output: Outlet,
    piece: Vec<u8>,
    /// A buffer of the guest's for which there was no input yet.
    buffer: Option<Chain>,
    /// A chain of the guest's that is not all written, and how much of it is.
    unwritten: Option<(Chain, u32)>,
    control: DeviceControl,
}

/// What became of a read or write.
enum Moved {
    Bytes(u32),
    /// Not now.
    Nothing,
    /// Never again.
    End,
}

impl Worker {
    pub(super) fn new(
        receive: Virtqueue,
        transmit: Virtqueue,
        input: Option<File>,
        output: Outlet,
        control: DeviceControl,
    ) -> Self {
        Self {
            receive,
            transmit,
            input,
            input_awaited: false,
            always_ready: false,
            output,
            piece: vec![0; PIECE],
            buffer: None,
            unwritten: None,
            control,
        }
    }

    /// The guest has a buffer, or should have: waits for input as long as it does.
    fn serve_receive(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        while self.buffer.is_none() {
            self.buffer = self.receive.next_chain()?;
            if self.buffer.is_none() && !self.receive.enable_notification()? {
                break;
            }
        }
        self.await_input(self.buffer.is_some(), ops);
        Ok(())
    }

    /// There is input, and a buffer for it.
    fn serve_input(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        let (Some(chain), Some(input)) = (&self.buffer, &mut self.input) else { return Ok(()) };
        if chain.writable_len() == 0 {
            return Err(chain.malformed("a console buffer has no room for input"));
        }
        let mut moved = Moved::Nothing;
        // Into the first piece only: what is left comes with the next event.
        let len = chain.writable().first().map_or(0, |piece| piece.len as usize);
        let mut first = true;
        chain.for_each_writable(self.receive.memory(), 0, len, |mut piece| {
            if std::mem::take(&mut first) {
                moved = Moved::of(input.read_volatile(&mut piece));
            }
            Ok(())
        })?;
        match moved {
            Moved::Nothing => {}
            Moved::End | Moved::Bytes(0) => {
                self.await_input(false, ops);
                self.input = None;
            }
            Moved::Bytes(read) => {
                if let Some(chain) = self.buffer.take() {
                    self.receive.complete(chain, read)?;
                }
                self.receive.notify_if_needed()?;
                self.serve_receive(ops)?;
            }
        }
        Ok(())
    }

    /// Writes what the guest says, until there is no more or the output is full.
    fn serve_transmit(&mut self) -> Result<(), QueueFault> {
        // As in `Virtqueue::serve`: others on the thread have their turn.
        for _ in 0..self.transmit.size() {
            let (chain, done) = match self.unwritten.take() {
                Some(unwritten) => unwritten,
                None => match self.transmit.next_chain()? {
                    Some(chain) => (chain, 0),
                    None if self.transmit.enable_notification()? => continue,
                    None => return self.transmit.notify_if_needed(),
                },
            };
            let written = self.write(&chain, done)?;
            let done = done + written;
            if done >= chain.readable_len() {
                self.transmit.complete(chain, 0)?;
                continue;
            }
            self.unwritten = Some((chain, done));
            if written == 0 {
                // The output says when there is room.
                return self.transmit.notify_if_needed();
            }
        }
        self.transmit.wake_again();
        self.transmit.notify_if_needed()
    }

    /// Writes one piece of a chain, from byte `offset` on. Returns how much the output took.
    fn write(&mut self, chain: &Chain, offset: u32) -> Result<u32, QueueFault> {
        let left = chain.readable_len().saturating_sub(offset);
        let length = self.piece.len().min(left as usize);
        let piece = &mut self.piece[..length];
        chain.read(self.transmit.memory(), offset, piece)?;
        Ok(u32::try_from(self.output.offer(piece)).unwrap_or(left))
    }

    fn await_input(&mut self, wanted: bool, ops: &mut EventOps<'_>) {
        let Some(input) = &self.input else { return };
        if wanted == self.input_awaited || self.always_ready {
            return;
        }
        let events = Events::with_data(input, INPUT, EventSet::IN);
        let result = if wanted { ops.add(events) } else { ops.remove(events) };
        self.input_awaited = wanted;
        if is_not_waited_for(&result) {
            self.always_ready = true;
        } else if let Err(error) = result {
            tracing::info!(%error, "the console's input cannot be waited for and stays unread");
            self.input = None;
        }
    }

    /// Hands on input that cannot be waited for.
    fn serve_file(&mut self, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        // As in `Virtqueue::serve`: others on the thread have their turn.
        for _ in 0..self.receive.size() {
            if !self.always_ready || self.buffer.is_none() || self.input.is_none() {
                return Ok(());
            }
            self.serve_input(ops)?;
        }
        self.receive.wake_again();
        Ok(())
    }

    fn serve(&mut self, event: u32, ops: &mut EventOps<'_>) -> Result<(), QueueFault> {
        match event {
            RECEIVE_KICK => {
                self.receive.drain_kick();
                self.serve_receive(ops)?;
                self.serve_file(ops)
            }
            TRANSMIT_KICK => {
                self.transmit.drain_kick();
                self.serve_transmit()
            }
            INPUT => self.serve_input(ops),
            _ => {
                // Only that it counted matters.
                let _ = self.output.room().read();
                self.serve_transmit()
            }
        }
    }
}

/// Whether epoll refuses a file because it is always ready.
fn is_not_waited_for(result: &Result<(), event_manager::Error>) -> bool {
    matches!(result, Err(event_manager::Error::Epoll(error)) if error.errno() == libc::EPERM)
}

impl Moved {
    fn of(result: Result<usize, VolatileMemoryError>) -> Self {
        match result {
            Ok(bytes) => Self::Bytes(u32::try_from(bytes).unwrap_or(u32::MAX)),
            Err(VolatileMemoryError::IOError(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) =>
            {
                Self::Nothing
            }
            Err(_) => Self::End,
        }
    }
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let sources = [
            Events::with_data(self.receive.kick(), RECEIVE_KICK, EventSet::IN),
            Events::with_data(self.transmit.kick(), TRANSMIT_KICK, EventSet::IN),
            Events::with_data(self.output.room(), ROOM, EventSet::IN),
        ];
        for source in sources {
            if let Err(error) = ops.add(source) {
                tracing::error!(%error, "the console cannot wait for its driver");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        if let Err(fault) = self.serve(events.data(), ops) {
            self.control.needs_reset(&fault);
            for source in [self.receive.kick(), self.transmit.kick(), self.output.room()] {
                // Fails only if it is not there any more.
                let _ = ops.remove(Events::empty(source));
            }
            self.await_input(false, ops);
        }
    }
}
