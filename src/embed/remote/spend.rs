//! What embedding costs and may cost: prices, caps, and the ledger that outlives the process.
//!
//! Money is counted in whole picos, 10⁻¹² of the user's currency, so that sums are exact; tokens are counted as they are.

use std::ops::AddAssign;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Picos in one unit of currency.
const PICOS: f64 = 1e12;

/// What a provider asks for a million tokens, in the currency that the caps are in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Price {
    /// Currency units per million tokens: 0.02 for two cents.
    pub per_million_tokens: f64,
}

/// The most that may be spent; not capped where absent.
///
/// What a request may cost is set aside in the bank before it is sent, by an upper bound (a token for each byte, or the
/// tokenizer's count), and corrected to the bill after. A killed process leaves what it had set aside counted as spent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SpendCaps {
    /// Tokens in one run.
    pub run_tokens: Option<u64>,
    /// Currency units in one run.
    pub run_cost: Option<f64>,
    /// Tokens in one day, UTC, of all runs and processes on the bank.
    pub day_tokens: Option<u64>,
    /// Currency units in one day, UTC, likewise.
    pub day_cost: Option<f64>,
}

/// Tokens and their cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spend {
    /// Tokens.
    pub tokens: u64,
    /// Cost in 10⁻¹² of the currency unit.
    pub picos: u64,
}

/// Where spending is kept so that a crash cannot forget it: one text that changes by compare-and-set.
///
/// A bank gives every embedder that it is opened with such a ledger.
#[async_trait]
pub trait SpendLedger: Send + Sync {
    /// The text as of the newest change of any process; `None` before the first one.
    ///
    /// # Errors
    /// Those of the storage.
    async fn read(&self) -> Result<Option<String>>;

    /// Sets the text if it still is `expected`, and returns whether it was set. What was set survives a crash from then on.
    ///
    /// # Errors
    /// Those of the storage.
    async fn replace(&self, expected: Option<&str>, new: &str) -> Result<bool>;
}

impl Price {
    /// Picos per token, rounded up: never less than what will be billed.
    pub(super) fn picos_per_token(self) -> Result<u64> {
        to_picos("price", self.per_million_tokens).map(|picos| picos.div_ceil(1_000_000))
    }
}

impl SpendCaps {
    pub(super) fn is_unlimited(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn has_cost(&self) -> bool {
        self.run_cost.is_some() || self.day_cost.is_some()
    }
}

impl Spend {
    /// In currency units, for people.
    pub fn cost(&self) -> f64 {
        self.picos as f64 / PICOS
    }

    pub(super) fn of(tokens: u64, picos_per_token: u64) -> Self {
        Self { tokens, picos: tokens.saturating_mul(picos_per_token) }
    }

    pub(super) fn less(self, other: Self) -> Self {
        Self { tokens: self.tokens.saturating_sub(other.tokens), picos: self.picos.saturating_sub(other.picos) }
    }
}

impl AddAssign for Spend {
    fn add_assign(&mut self, other: Self) {
        self.tokens = self.tokens.saturating_add(other.tokens);
        self.picos = self.picos.saturating_add(other.picos);
    }
}

/// An amount of currency as picos; one that is negative, not a number or beyond 10 million is refused.
pub(super) fn to_picos(setting: &'static str, amount: f64) -> Result<u64> {
    if !(0.0..=1e7).contains(&amount) {
        return Err(Error::InvalidSetting { setting, reason: format!("{amount} is not between 0 and 10,000,000") });
    }
    // In range, as was just checked.
    Ok((amount * PICOS).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_price_is_exact_to_the_pico_and_never_rounded_down() {
        let per_token = |per_million_tokens| Price { per_million_tokens }.picos_per_token().unwrap();
        assert_eq!((per_token(0.02), per_token(0.13), per_token(0.0)), (20_000, 130_000, 0));
        assert_eq!(per_token(0.000_000_4), 1);
        assert_eq!(Spend::of(1_000_000, per_token(0.02)).cost(), 0.02);
        for bad in [-1.0, f64::NAN, f64::INFINITY, 1e8] {
            assert!(Price { per_million_tokens: bad }.picos_per_token().is_err(), "{bad}");
        }
    }
}
