//! What embedding texts would take, before anything is sent.

use serde::Serialize;

/// An estimate for texts that are not embedded yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Estimate {
    /// Texts.
    pub texts: u64,
    /// Their tokens: counted where the tokenizer is at hand, else a third of their bytes.
    pub tokens: u64,
    /// What they would cost, in the currency of the price; 0 for what runs on this machine.
    pub cost: f64,
}

impl Estimate {
    /// Adds another estimate to this one.
    pub fn add(&mut self, other: Self) {
        self.texts += other.texts;
        self.tokens += other.tokens;
        self.cost += other.cost;
    }
}
