//! Answers on their way, to be cancelled by their tickets.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// The answers being sent. Each belongs to a call of a client, so they are as bounded as those.
#[derive(Clone, Default)]
pub(crate) struct Running {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// By question and number of the call: a ticket may be used several times.
    answers: Mutex<BTreeMap<(u64, u64), oneshot::Sender<()>>>,
    calls: AtomicU64,
    questions: AtomicU64,
    /// So that tickets of an earlier run of the server cancel nothing of this one.
    secret: RandomState,
}

impl Running {
    /// A number for a new question.
    pub(crate) fn question(&self) -> u64 {
        self.inner.secret.hash_one(self.inner.questions.fetch_add(1, Relaxed))
    }

    /// Notes that a question is being answered, until the guard is dropped. The receiver hears of its cancellation.
    pub(crate) fn begin(&self, question: u64) -> (RunningGuard, oneshot::Receiver<()>) {
        let key = (question, self.inner.calls.fetch_add(1, Relaxed));
        let (cancel, cancelled) = oneshot::channel();
        self.inner.answers().insert(key, cancel);
        (RunningGuard { running: self.clone(), key }, cancelled)
    }

    /// Cancels all answers to a question; false if there are none.
    pub(crate) fn cancel(&self, question: u64) -> bool {
        let mut answers = self.inner.answers();
        let keys: Vec<_> = answers.range((question, 0)..=(question, u64::MAX)).map(|(key, _)| *key).collect();
        let cancels = keys.iter().filter_map(|key| answers.remove(key));
        // One that does not listen any more has just ended.
        cancels.map(|cancel| cancel.send(())).filter(Result::is_ok).count() > 0
    }
}

impl Inner {
    fn answers(&self) -> MutexGuard<'_, BTreeMap<(u64, u64), oneshot::Sender<()>>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An answer on its way.
pub(crate) struct RunningGuard {
    running: Running,
    key: (u64, u64),
}

impl Drop for RunningGuard {
    fn drop(&mut self) {
        self.running.inner.answers().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_answer_to_a_question_is_cancelled() {
        let running = Running::default();
        let [a, b] = [running.question(), running.question()];
        let (_first, first) = running.begin(a);
        let (_second, second) = running.begin(a);
        let (other, mut untouched) = running.begin(b);
        assert!(running.cancel(a));
        first.await.unwrap();
        second.await.unwrap();
        assert!(!running.cancel(a));
        assert_eq!(untouched.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        drop(other);
        assert!(!running.cancel(b) && running.inner.answers().is_empty());
    }
}
