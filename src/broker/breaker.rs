//! A store that has gone silent fails at once instead of keeping everybody waiting.
//!
//! A request that nobody answers takes all of its time, and a guest that goes on asking has soon as many of them waiting as it
//! has threads. So a store that let a request wait for all of its time, and has answered nobody else since that request was sent,
//! is taken for gone: requests fail without being sent until the store answers a question that is asked in the background.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long after one question in the background the next is asked, at first and at most.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);
pub(super) const ASK_AGAIN_MAX: Duration = Duration::from_secs(15);

/// What is known of one store's silence.
#[derive(Debug, Default)]
pub(super) struct Breaker(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When the store was last heard.
    heard: Option<Instant>,
    /// It is taken for gone.
    gone: bool,
}

impl Breaker {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether requests are to fail without being sent.
    pub fn is_open(&self) -> bool {
        self.state().gone
    }

    /// The store has said something. Returns whether it was taken for gone.
    pub fn heard(&self) -> bool {
        let mut state = self.state();
        state.heard = Some(Instant::now());
        std::mem::take(&mut state.gone)
    }

    /// A request that was sent at `sent`, and might take `patience`, has failed because no answer came. Returns whether the store
    /// is taken for gone from now on, and was not before.
    pub fn unanswered(&self, sent: Instant, patience: Duration) -> bool {
        let mut state = self.state();
        // Those that fail early have been refused by somebody.
        let waited = sent.elapsed() >= patience;
        let silent = waited && state.heard.is_none_or(|heard| heard < sent);
        silent && !std::mem::replace(&mut state.gone, true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn ago(seconds: u64) -> Instant {
        Instant::now().checked_sub(Duration::from_secs(seconds)).unwrap()
    }

    #[test]
    fn silence_for_all_of_its_time_opens_it_once() {
        let breaker = Breaker::default();
        assert!(!breaker.is_open());
        assert!(breaker.unanswered(ago(61), PATIENCE));
        assert!(breaker.is_open());
        assert!(!breaker.unanswered(ago(61), PATIENCE), "it is known already");
    }

    #[test]
    fn refusal_and_somebody_elses_answer_are_no_silence() {
        let breaker = Breaker::default();
        assert!(!breaker.unanswered(ago(2), PATIENCE), "a connection that was refused at once");
        let _ = breaker.heard();
        assert!(!breaker.unanswered(ago(61), PATIENCE), "it waited for its turn while others were served");
        assert!(!breaker.is_open());
    }

    #[test]
    fn an_answer_closes_it_and_says_that_it_was_open() {
        let breaker = Breaker::default();
        assert!(breaker.unanswered(ago(61), PATIENCE));
        assert!(breaker.heard());
        assert!(!breaker.is_open() && !breaker.heard());
    }
}
