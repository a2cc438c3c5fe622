//! Answers that are believed for a moment. Bounded in time and number: nobody can fill the memory with what they ask.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Answers by question.
#[derive(Debug)]
pub struct Memo<K, V> {
    known: Mutex<HashMap<K, (Instant, V)>>,
    lasting: Duration,
    most: usize,
}

impl<K: Eq + Hash + Clone, V: Clone> Memo<K, V> {
    /// Believes answers for `lasting`, `most` of them.
    pub fn new(lasting: Duration, most: usize) -> Self {
        Self { known: Mutex::default(), lasting, most }
    }

    /// The answer, if it was given a moment ago.
    pub fn get(&self, question: &K) -> Option<V> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(question).filter(|(at, _)| at.elapsed() < self.lasting).map(|(_, answer)| answer.clone())
    }

    /// Takes note of an answer.
    pub fn put(&self, question: K, answer: V) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= self.most {
            known.retain(|_, (at, _)| at.elapsed() < self.lasting);
        }
        if known.len() >= self.most {
            // All of them are fresh: whoever asked first asks again.
            let oldest = known.iter().min_by_key(|(_, (at, _))| *at).map(|(question, _)| question.clone());
            oldest.and_then(|oldest| known.remove(&oldest));
        }
        known.insert(question, (Instant::now(), answer));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn answers_are_forgotten_in_time_and_never_too_many() {
        let memo = Memo::new(Duration::from_secs(10), 3);
        for number in 0..4 {
            memo.put(number, number);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert_eq!((0..4).filter_map(|number| memo.get(&number)).collect::<Vec<_>>(), [1, 2, 3]);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!((0..4).filter_map(|number| memo.get(&number)).collect::<Vec<_>>(), [2, 3]);
    }
}
