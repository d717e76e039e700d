//! An io_uring that owns the jobs it was given.

use std::io;
use std::mem;
use std::os::fd::AsRawFd;

use io_uring::register::Restriction;
use io_uring::{IoUring, cqueue, opcode, squeue};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::{Finished, Image, Job};

pub(super) struct Ring {
    ring: IoUring,
    completions: EventFd,
    /// What the kernel works on; the index is the entry's user data.
    jobs: Vec<Option<Job>>,
    free: Vec<usize>,
    /// Entries pushed but not yet submitted.
    pushed: usize,
}

impl Ring {
    /// A ring for `depth` jobs at once on `image`.
    pub(super) fn new(image: &Image, depth: u16) -> io::Result<Self> {
        let entries = u32::from(depth);
        // With COOP_TASKRUN (Linux 5.19) completions do not interrupt what this thread does. The ring is
        // disabled until it is restricted.
        let ring = IoUring::builder()
            .setup_r_disabled()
            .setup_coop_taskrun()
            .build(entries)
            .or_else(|_| IoUring::builder().setup_r_disabled().build(entries))?;
        let completions = EventFd::new(EFD_NONBLOCK)?;
        let files = [image.file(true).as_raw_fd(), image.file(false).as_raw_fd()];
        ring.submitter().register_files(&files)?;
        ring.submitter().register_eventfd(completions.as_raw_fd())?;
        ring.submitter().register_restrictions(&mut restrictions())?;
        ring.submitter().register_enable_rings()?;
        Ok(Self {
            ring,
            completions,
            jobs: (0..depth).map(|_| None).collect(),
            free: (0..usize::from(depth)).collect(),
            pushed: 0,
        })
    }

    pub(super) fn event(&self) -> &EventFd {
        &self.completions
    }

    /// Whether the kernel works on nothing.
    pub(super) fn is_idle(&self) -> bool {
        self.free.len() == self.jobs.len()
    }

    /// Puts a job into the ring.
    pub(super) fn start(&mut self, job: Job) -> io::Result<()> {
        let index = self.free.pop().ok_or(io::ErrorKind::QuotaExceeded)?;
        self.push(index, job)
    }

    fn push(&mut self, index: usize, job: Job) -> io::Result<()> {
        let slot = self.jobs.get_mut(index).ok_or(io::ErrorKind::QuotaExceeded)?;
        let entry = slot.insert(job).entry().user_data(index as u64);
        // SAFETY: the entry points to guest memory, which the job keeps mapped, or to a static; where there are several
        // buffers, also to the job's list of them, which is on the heap then and untouched while the
        // job is in `jobs`. The job leaves `jobs` when the kernel has answered the entry (`reap`),
        // never before: `Drop` waits for all answers, and if it cannot, it leaks the jobs.
        let result = unsafe { self.ring.submission().push(&entry) };
        // Cannot be full: it has as many entries as there are jobs.
        result.map_err(io::Error::other)?;
        self.pushed += 1;
        Ok(())
    }

    /// Hands all new jobs to the kernel, and takes back those that are done.
    pub(super) fn submit(&mut self, finished: &mut Vec<Finished>) -> io::Result<()> {
        loop {
            if self.pushed > 0 {
                self.enter(0)?;
            }
            self.reap(|job, result| finished.push(job.finish(result)))?;
            if self.pushed == 0 {
                return Ok(());
            }
        }
    }

    /// Enters the kernel with what was pushed, to wait for `wanted` answers.
    fn enter(&mut self, wanted: usize) -> io::Result<()> {
        match self.ring.submit_and_wait(wanted) {
            Ok(taken) => self.pushed = self.pushed.saturating_sub(taken),
            // Passing shortages: of memory, or of room for answers, which reaping makes.
            Err(error) if is_passing(&error) => std::thread::yield_now(),
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// Takes all answers; jobs that have more to do are pushed again.
    fn reap(&mut self, mut done: impl FnMut(Job, io::Result<()>)) -> io::Result<()> {
        while let Some(answer) = self.next_answer() {
            let index = usize::try_from(answer.user_data()).unwrap_or(usize::MAX);
            let Some(mut job) = self.jobs.get_mut(index).and_then(Option::take) else { continue };
            let result = usize::try_from(answer.result())
                .map_err(|_| io::Error::from_raw_os_error(answer.result().saturating_neg()));
            match job.advance(result) {
                None => self.push(index, job)?,
                Some(result) => {
                    self.free.push(index);
                    done(job, result);
                }
            }
        }
        Ok(())
    }

    fn next_answer(&mut self) -> Option<cqueue::Entry> {
        self.ring.completion().next()
    }

    /// Waits until the kernel is done with all jobs, and forgets them.
    pub(super) fn drain(&mut self) {
        while !self.is_idle() {
            let waited = self.enter(1).and_then(|()| self.reap(|_, _| {}));
            if let Err(error) = waited {
                tracing::error!(%error, "cannot wait for disk requests; their memory is kept");
                mem::take(&mut self.jobs).into_iter().for_each(mem::forget);
                self.free.clear();
            }
        }
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        self.drain();
    }
}

/// The operation of a job on registered files. Filters of system calls do not see entries of a ring.
fn restrictions() -> [Restriction; 7] {
    let file = squeue::Flags::FIXED_FILE.bits();
    let operations = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fallocate::CODE,
        opcode::Fsync::CODE,
    ];
    let [read, readv, write, writev, fallocate, fsync] = operations.map(Restriction::sqe_op);
    let files = Restriction::sqe_flags_required(file);
    [read, readv, write, writev, fallocate, fsync, files]
}

fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY))
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use io_uring::types::{Fd, Fixed};

    use super::*;

    /// The answer to one entry.
    fn answer(ring: &mut Ring, entry: &squeue::Entry) -> i32 {
        // SAFETY: what the entry points to lives until its answer is taken.
        unsafe { ring.ring.submission().push(entry).unwrap() };
        ring.ring.submit_and_wait(1).unwrap();
        ring.next_answer().unwrap().result()
    }

    #[test]
    fn ring_refuses_entries_that_no_disk_makes() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        let other = File::open("/etc/hostname").unwrap();
        let mut ring = Ring::new(&Image::new(file, false).unwrap(), 4).unwrap();
        let mut byte = 7u8;
        let place = &raw mut byte;
        let current = Fd(libc::AT_FDCWD);
        for (name, entry) in [
            ("openat", opcode::OpenAt::new(current, c"/etc/hostname".as_ptr()).build()),
            ("socket", opcode::Socket::new(libc::AF_INET, libc::SOCK_STREAM, 0).build()),
            ("unlinkat", opcode::UnlinkAt::new(current, c"/none".as_ptr()).build()),
            ("read of another file", opcode::Read::new(Fd(other.as_raw_fd()), place, 1).build()),
            ("nop", opcode::Nop::new().build()),
        ] {
            assert_eq!(answer(&mut ring, &entry), -libc::EACCES, "{name}");
        }
        assert_eq!(answer(&mut ring, &opcode::Read::new(Fixed(0), place, 1).build()), 1);
        assert_eq!(byte, 0);
        let refused = ring.ring.submitter().register_files_update(0, &[other.as_raw_fd()]);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EACCES));
    }
}
