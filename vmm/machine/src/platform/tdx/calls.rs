//! The calls of a TD that KVM hands to this process (Intel TDX GHCI, "TDG.VP.VMCALL").

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use casemate_config::QuoteService;
use casemate_devices::interrupt::Message;
use casemate_kvm::exit::{TdxCall, TdxReply};

use super::quote_buffer::{QuoteBuffer, Status};
use crate::helper::{Helper, call};
use crate::interrupts::deliver;
use crate::platform::Caller;
use crate::quote_service::{QuoteError, quote};

/// Quotes that a guest may wait for at the same time; each has a thread.
const MOST_QUOTES: u32 = 16;

/// Bits of R11 in the answer to GetTdVmCallInfo, leaf 1: GetQuote, SetupEventNotifyInterrupt.
const KNOWN_HERE: u64 = 1 << 0 | 1 << 1;

/// How long the answer to GetTdVmCallInfo takes, which vCPUs ask for that wait for another one in
/// Casemate's firmware: short beside what a kernel takes to start a processor, long beside an exit.
const WAIT: Duration = Duration::from_millis(4);

/// What a TD's calls need.
pub(super) struct Calls {
    service: QuoteService,
    /// R11 and R12: what the kernel handles itself, and what it hands over and is known here.
    info: [u64; 2],
    waiting: Arc<Waiting>,
    /// What starts the threads of quotes.
    helper: Option<Helper>,
}

/// Quotes under way.
#[derive(Default)]
struct Waiting {
    count: AtomicU32,
    /// What says that one is done.
    notification: Mutex<Option<Message>>,
}

impl Calls {
    pub(super) fn new(service: QuoteService) -> Self {
        Self { service, info: [0; 2], waiting: Arc::default(), helper: None }
    }

    /// Lets `helper` start the threads of quotes.
    pub(super) fn help(&mut self, helper: Helper) {
        self.helper = Some(helper);
    }

    /// Takes what the kernel says of itself and of this process, R11 and R12 each.
    pub(super) fn tell(&mut self, kernel: [u64; 2], user: [u64; 2]) {
        self.info = [kernel[0] | user[0] & KNOWN_HERE, kernel[1]];
    }

    pub(super) fn answer(&self, call: TdxCall, caller: Caller<'_>) -> TdxReply {
        match call {
            TdxCall::GetInfo { leaf } => {
                thread::sleep(WAIT);
                self.info(leaf)
            }
            TdxCall::SetupEventNotify { vector } => self.notify_by(vector, caller.vcpu),
            TdxCall::GetQuote { gpa, size } => self.quote(gpa, size, caller),
            TdxCall::Unknown { number } => {
                tracing::warn!(number, "a call of the guest that is not known");
                TdxReply::Unsupported
            }
        }
    }

    fn info(&self, leaf: u64) -> TdxReply {
        match leaf {
            1 => TdxReply::Info([self.info[0], self.info[1], 0, 0]),
            _ => TdxReply::InvalidOperand,
        }
    }

    fn notify_by(&self, vector: u64, vcpu: u32) -> TdxReply {
        let Some(message) = notification(vector, vcpu) else { return TdxReply::InvalidOperand };
        let notification = &self.waiting.notification;
        *notification.lock().unwrap_or_else(PoisonError::into_inner) = Some(message);
        TdxReply::Success
    }

    /// Starts a thread that fetches the quote; the guest goes on meanwhile. The thread keeps neither
    /// VM nor memory: a guest that ends does not wait for it.
    fn quote(&self, gpa: u64, size: u64, caller: Caller<'_>) -> TdxReply {
        let (buffer, report) = match QuoteBuffer::open(caller.ram.memory(), gpa, size) {
            Ok(request) => request,
            Err(reply) => return reply,
        };
        let Some(place) = Place::take(&self.waiting) else { return TdxReply::Retry };
        let vm = Arc::downgrade(caller.vm);
        let service = self.service.clone();
        let fetch = move || {
            let answer = quote(&service, &report);
            if let Err(error) = &answer {
                let source = std::error::Error::source(error).map(ToString::to_string);
                tracing::warn!(%error, source, "the guest gets no quote");
            }
            buffer.finish(answer.map_err(|error| status(&error)));
            let notification = &place.0.notification;
            let message = *notification.lock().unwrap_or_else(PoisonError::into_inner);
            if let (Some(vm), Some(message)) = (vm.upgrade(), message)
                && let Err(error) = deliver(&vm, message)
            {
                tracing::warn!(%error, "could not tell the guest that a quote is done");
            }
        };
        let start = || thread::Builder::new().name("quote".into()).spawn(fetch).map(drop);
        match call(self.helper.as_ref(), start) {
            Some(Ok(())) => TdxReply::Success,
            Some(Err(error)) => {
                tracing::warn!(%error, "no thread for a quote");
                TdxReply::Retry
            }
            None => TdxReply::Retry,
        }
    }
}

/// The message of an interrupt with this vector, at the vCPU that asked for it.
fn notification(vector: u64, vcpu: u32) -> Option<Message> {
    const LOCAL_APICS: u64 = 0xfee0_0000;
    let data = u32::try_from(vector).ok().filter(|vector| (32..=255).contains(vector))?;
    Some(Message { address: LOCAL_APICS | u64::from(vcpu) << 12, data })
}

const fn status(error: &QuoteError) -> Status {
    match error {
        QuoteError::Connect { .. } => Status::Unavailable,
        _ => Status::Error,
    }
}

/// One of the quotes under way.
struct Place(Arc<Waiting>);

impl Place {
    fn take(waiting: &Arc<Waiting>) -> Option<Self> {
        let place = Self(waiting.clone());
        let before = waiting.count.fetch_add(1, Ordering::Relaxed);
        (before < MOST_QUOTES).then_some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R11 to R14: what the kernel handles, and of what it hands over only what is known here.
    #[test]
    fn a_guest_is_told_of_the_calls_that_are_answered() {
        let mut calls = Calls::new(QuoteService::default());
        assert_eq!(calls.info(1), TdxReply::Info([0; 4]), "a kernel that does not say");
        // Linux 7.2: GetQuote is there anyway, SetupEventNotifyInterrupt is bit 1.
        calls.tell([0; 2], [2, 0]);
        assert_eq!(calls.info(1), TdxReply::Info([2, 0, 0, 0]));
        calls.tell([1 << 63 | 1 << 4, 1 << 5], [u64::MAX; 2]);
        assert_eq!(calls.info(1), TdxReply::Info([1 << 63 | 1 << 4 | 0b11, 1 << 5, 0, 0]));
        assert_eq!([0, 2, u64::MAX].map(|leaf| calls.info(leaf)), [TdxReply::InvalidOperand; 3]);
    }

    #[test]
    fn interrupts_go_to_the_vcpu_that_asked() {
        let message = Message { address: 0xfee0_3000, data: 0x40 };
        assert_eq!(notification(0x40, 3), Some(message));
        assert_eq!([31, 256, u64::MAX].map(|vector| notification(vector, 0)), [None; 3]);
    }

    #[test]
    fn no_more_quotes_are_under_way_than_there_are_places() {
        let waiting = Arc::default();
        let taken: Vec<_> = (0..MOST_QUOTES).map(|_| Place::take(&waiting)).collect();
        assert!(taken.iter().all(Option::is_some) && Place::take(&waiting).is_none());
        drop(taken);
        assert!(Place::take(&waiting).is_some());
    }
}
