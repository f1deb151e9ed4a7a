//! The one thread that may open interfaces after all others gave their privileges up.

use super::{Capabilities, Dropped, PrivilegeError, User, sys};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread::{self, JoinHandle};

/// Name of the thread, as `ps -L` and `/proc` show it.
const THREAD_NAME: &str = "opener";
/// Jobs that wait for the thread; whoever brings one more waits until there is room. Each caller has one at a time.
const JOBS_WAITING_MAX: usize = 4;

type Job = Box<dyn FnOnce() + Send>;

/// A thread that runs what needs privileges, one job after the other, on behalf of threads that have none.
///
/// Started while the process is still privileged, it opens the interfaces at the start, and those that went away and
/// came back later. [`Opener::drop_to`] leaves it [`Capabilities::REOPEN`] (those of them it had) if it is to keep
/// them, and nothing otherwise. The thread ends when the `Opener` is dropped.
#[derive(Debug)]
pub struct Opener {
    /// `None` only while it is dropped.
    jobs: Option<SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
    tid: i32,
    keep: bool,
    /// The privileges of this thread are gone too.
    gave_up: AtomicBool,
}

/// A job did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenerError {
    /// The thread has no privileges any more.
    #[error(
        "interfaces cannot be opened again: all privileges were dropped after the start; restart, or let the opener keep its own"
    )]
    GaveUp,
    /// The job panicked. The thread goes on.
    #[error("opening panicked: {message}")]
    Panicked {
        /// What the panic said.
        message: String,
    },
    /// The thread is gone.
    #[error("the opener thread has ended")]
    Ended,
}

impl Opener {
    /// Starts the thread, with the privileges of the calling one. With `keep` it can open interfaces after the drop too;
    /// without, nothing can.
    ///
    /// # Errors
    /// The system has no thread left.
    pub fn spawn(keep: bool) -> Result<Opener, PrivilegeError> {
        let (jobs, waiting) = sync_channel::<Job>(JOBS_WAITING_MAX);
        let work = move || waiting.into_iter().for_each(|job| job());
        let thread = thread::Builder::new().name(THREAD_NAME.to_owned()).spawn(work).map_err(PrivilegeError::Spawn)?;
        let mut opener =
            Opener { jobs: Some(jobs), thread: Some(thread), tid: 0, keep, gave_up: AtomicBool::new(false) };
        opener.tid = opener.call(sys::thread_id)?;
        Ok(opener)
    }

    /// Whether it keeps privileges for opening interfaces again.
    pub fn keep(&self) -> bool {
        self.keep
    }

    /// Runs `job` on the thread and waits for its result: as long as the job takes, and the jobs of other callers before
    /// it. A job that itself calls `run` of its opener has the inner job run at once.
    ///
    /// # Errors
    /// The thread has no privileges any more, or `job` panicked (in a build that unwinds; where a panic aborts, it ends
    /// the process).
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, OpenerError> {
        if self.gave_up.load(Ordering::Acquire) {
            return Err(OpenerError::GaveUp);
        }
        self.call(job)
    }

    /// As [`drop_to`](super::drop_to), which it replaces in a process with an opener: the process loses everything, this
    /// thread all but [`Capabilities::REOPEN`], or that too.
    ///
    /// The steps, each done when the next begins: the opener has its permitted set survive a change of user
    /// (PR_SET_KEEPCAPS, which holds for one thread); the calling thread changes groups and user for all threads; the
    /// opener makes of what survived its new sets; the calling thread empties its own; both are verified.
    ///
    /// # Errors
    /// As those of [`drop_to`](super::drop_to).
    pub fn drop_to(&self, user: Option<&User>) -> Result<Dropped, PrivilegeError> {
        let dropped = super::drop_process(user, Some(self));
        // Also after an error: then nobody can tell what the thread still has, and the process is to end.
        self.gave_up.store(!self.keep || dropped.is_err(), Ordering::Release);
        dropped
    }

    pub(super) fn tid(&self) -> i32 {
        self.tid
    }

    /// Before the change of user. Returns what the thread will keep, and whether its bounding set is empty.
    pub(super) fn prepare(&self) -> Result<(Capabilities, bool), PrivilegeError> {
        let keep = self.keep;
        self.call(move || {
            let bounding_cleared = super::clear_bounding()?;
            if !keep {
                return Ok((Capabilities::EMPTY, bounding_cleared));
            }
            super::system("prctl(PR_SET_KEEPCAPS)", sys::set_keep_capabilities(true))?;
            let permitted = super::system("capget", sys::capabilities())?.permitted;
            Ok((Capabilities::from_bits(permitted).intersection(Capabilities::REOPEN), bounding_cleared))
        })?
    }

    /// After the change of user.
    pub(super) fn confine(&self, kept: Capabilities) -> Result<(), PrivilegeError> {
        self.call(move || {
            super::confine_thread(kept)?;
            super::system("prctl(PR_SET_KEEPCAPS)", sys::set_keep_capabilities(false))
        })?
    }

    fn call<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Result<T, OpenerError> {
        if self.is_current_thread() {
            return guarded(job);
        }
        let (reply, result) = sync_channel(1);
        // The caller waits for the reply, so there is somebody to take it.
        let job: Job = Box::new(move || drop(reply.send(guarded(job))));
        let jobs = self.jobs.as_ref().ok_or(OpenerError::Ended)?;
        jobs.send(job).map_err(|_| OpenerError::Ended)?;
        result.recv().map_err(|_| OpenerError::Ended)?
    }

    fn is_current_thread(&self) -> bool {
        self.thread.as_ref().is_some_and(|opener| opener.thread().id() == thread::current().id())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        self.jobs = None;
        // A job may hold the last handle; the thread cannot wait for itself, and ends after that job.
        if self.is_current_thread() {
            return;
        }
        if let Some(thread) = self.thread.take() {
            // It does not panic: jobs are guarded.
            drop(thread.join());
        }
    }
}

fn guarded<T>(job: impl FnOnce() -> T) -> Result<T, OpenerError> {
    // What a job shares with others is locks and channels, which know of panics themselves.
    catch_unwind(AssertUnwindSafe(job)).map_err(|panic| OpenerError::Panicked { message: message_of(&*panic) })
}

fn message_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[test]
    fn jobs_run_on_one_named_thread() {
        let opener = Opener::spawn(true).unwrap();
        let here = thread::current().id();
        let job = || (thread::current().id(), thread::current().name().map(str::to_owned), sys::thread_id());
        let (first, name, tid) = opener.run(job).unwrap();
        assert_eq!((name.as_deref(), tid), (Some("opener"), opener.tid()));
        assert_ne!(first, here);
        assert_eq!(opener.run(|| thread::current().id()).unwrap(), first);
        assert!(opener.keep());
    }

    #[test]
    fn a_panic_is_an_error_and_the_thread_goes_on() {
        let opener = Opener::spawn(true).unwrap();
        let error = opener.run(|| panic!("no such {}", "interface")).unwrap_err();
        assert_eq!(error, OpenerError::Panicked { message: "no such interface".to_owned() });
        let error = opener.run(|| std::panic::panic_any(7)).unwrap_err();
        assert_eq!(error.to_string(), "opening panicked: no message");
        assert_eq!(opener.run(|| 7).unwrap(), 7);
    }

    #[test]
    fn a_job_within_a_job_runs_at_once() {
        let opener = Arc::new(Opener::spawn(true).unwrap());
        let inner = Arc::clone(&opener);
        assert_eq!(opener.run(move || inner.run(|| 7)).unwrap(), Ok(7));
    }

    /// The last handle goes with a job: the thread must not wait for itself.
    #[test]
    fn the_last_handle_may_die_on_the_thread() {
        let opener = Arc::new(Opener::spawn(false).unwrap());
        let (done, ended) = sync_channel::<()>(0);
        let (last, go) = sync_channel::<Arc<Opener>>(1);
        let jobs = opener.jobs.clone().unwrap();
        let job: Job = Box::new(move || {
            drop(go.recv());
            drop(done);
        });
        jobs.send(job).unwrap();
        drop(jobs);
        last.send(opener).unwrap();
        ended.recv().unwrap_err();
    }

    #[test]
    fn callers_of_several_threads_are_all_served() {
        let opener = Opener::spawn(true).unwrap();
        let sum: u64 = thread::scope(|scope| {
            let calls = |n: u64| (0..100_u64).map(|i| opener.run(move || n * i).unwrap()).sum::<u64>();
            let callers: Vec<_> = (0..8).map(|n| scope.spawn(move || calls(n))).collect();
            callers.into_iter().map(|c| c.join().unwrap()).sum()
        });
        assert_eq!(sum, 28 * 4950);
    }
}
