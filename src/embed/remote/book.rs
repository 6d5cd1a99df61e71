//! The ledger's text, as a value: what was spent today, in each of the last runs and ever. Pure arithmetic.
//!
//! Guarantees: a reservation never takes a sum above its cap; what is set aside counts as spent until it is settled.

use serde::{Deserialize, Serialize};

use super::spend::{Spend, SpendCaps, to_picos};
use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// Runs that are remembered: enough that no run which is under way, or is repeated after a crash, is forgotten.
const RUNS: usize = 256;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Caps in the ledger's units.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Caps {
    run: Cap,
    day: Cap,
}

#[derive(Clone, Copy, Debug, Default)]
struct Cap {
    tokens: Option<u64>,
    picos: Option<u64>,
}

/// What was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reservation {
    day: i64,
    pub(super) amount: Spend,
}

/// A wish to set tokens aside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wish {
    /// Fewer are of no use.
    pub(super) least_tokens: u64,
    /// More are not needed.
    pub(super) most_tokens: u64,
    pub(super) picos_per_token: u64,
}

/// The ledger.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Book {
    /// Days since the epoch, UTC.
    day: i64,
    today: Spend,
    total: Spend,
    /// Oldest first, by their last change.
    runs: Vec<Run>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Run {
    id: String,
    spent: Spend,
}

impl Caps {
    pub(super) fn new(caps: &SpendCaps) -> Result<Self> {
        let picos = |setting, cost: Option<f64>| cost.map(|cost| to_picos(setting, cost)).transpose();
        Ok(Self {
            run: Cap { tokens: caps.run_tokens, picos: picos("run_cost", caps.run_cost)? },
            day: Cap { tokens: caps.day_tokens, picos: picos("day_cost", caps.day_cost)? },
        })
    }
}

impl Cap {
    /// Tokens that still fit.
    fn left(&self, spent: Spend, picos_per_token: u64) -> u64 {
        let by_tokens = self.tokens.map_or(u64::MAX, |cap| cap.saturating_sub(spent.tokens));
        let by_cost = self
            .picos
            .map_or(u64::MAX, |cap| cap.saturating_sub(spent.picos).checked_div(picos_per_token).unwrap_or(u64::MAX));
        by_tokens.min(by_cost)
    }

    fn in_words(&self) -> String {
        let tokens = self.tokens.map(|tokens| format!("{tokens} tokens"));
        let cost = self.picos.map(|picos| format!("{} in currency", Spend { tokens: 0, picos }.cost()));
        tokens.into_iter().chain(cost).collect::<Vec<_>>().join(", ")
    }
}

impl Book {
    /// Reads what [`Book::render`] wrote; an empty ledger where there is none yet.
    pub(super) fn parse(text: Option<&str>) -> Result<Self> {
        text.map_or_else(|| Ok(Self::default()), serde_json::from_str).map_err(|e| Error::MalformedRow {
            table: "spend".into(),
            column: "value".into(),
            reason: format!("it is no ledger: {e}"),
        })
    }

    pub(super) fn render(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Sets aside as many of the wished tokens as the caps leave.
    ///
    /// # Errors
    /// [`Error::SpendCapReached`] if fewer than the least are left.
    pub(super) fn reserve(&mut self, now: Timestamp, run: &str, caps: &Caps, wish: Wish) -> Result<Reservation> {
        self.turn_to(now);
        let spent_by_run = self.run(run).spent;
        let by_run = caps.run.left(spent_by_run, wish.picos_per_token);
        let by_day = caps.day.left(self.today, wish.picos_per_token);
        let left = by_run.min(by_day);
        if left < wish.least_tokens {
            let (scope, cap, spent) =
                if by_run < by_day { ("run", caps.run, spent_by_run) } else { ("day", caps.day, self.today) };
            return Err(Error::SpendCapReached {
                scope,
                cap: cap.in_words(),
                spent_tokens: spent.tokens,
                wanted_tokens: wish.least_tokens,
            });
        }
        let amount = Spend::of(wish.most_tokens.min(left), wish.picos_per_token);
        self.today += amount;
        self.total += amount;
        self.run(run).spent += amount;
        Ok(Reservation { day: self.day, amount })
    }

    /// Replaces what was set aside by what was billed.
    pub(super) fn settle(&mut self, now: Timestamp, run: &str, reserved: Reservation, billed: Spend) {
        self.turn_to(now);
        let correct = |sum: &mut Spend| {
            *sum += billed;
            *sum = sum.less(reserved.amount);
        };
        correct(&mut self.total);
        correct(&mut self.run(run).spent);
        // A bill belongs to the day that it was set aside on.
        if self.day == reserved.day {
            correct(&mut self.today);
        }
    }

    /// The ledger with a total that is no less than what makes it up: today's spending, and that of all remembered runs.
    pub(super) fn with_plausible_sums(mut self) -> Self {
        let mut runs = Spend::default();
        self.runs.iter().for_each(|run| runs += run.spent);
        for part in [self.today, runs] {
            self.total.tokens = self.total.tokens.max(part.tokens);
            self.total.picos = self.total.picos.max(part.picos);
        }
        self
    }

    /// What was spent or set aside: today, in the run, ever.
    pub(super) fn sums(&mut self, now: Timestamp, run: &str) -> [Spend; 3] {
        self.turn_to(now);
        [self.today, self.run(run).spent, self.total]
    }

    /// A new day begins with nothing spent. A clock that was set back does not open an old one again.
    fn turn_to(&mut self, now: Timestamp) {
        let day = now.0.div_euclid(MICROS_PER_DAY);
        if day > self.day {
            self.day = day;
            self.today = Spend::default();
        }
    }

    fn run(&mut self, id: &str) -> &mut Run {
        let known = self.runs.iter().position(|run| run.id == id);
        let run = known.map_or_else(|| Run { id: id.to_owned(), spent: Spend::default() }, |at| self.runs.remove(at));
        let excess = (self.runs.len() + 1).saturating_sub(RUNS);
        self.runs.drain(..excess);
        self.runs.push_mut(run)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOON: Timestamp = Timestamp(20_000 * MICROS_PER_DAY + MICROS_PER_DAY / 2);
    const TOMORROW: Timestamp = Timestamp(NOON.0 + MICROS_PER_DAY);

    fn caps(run_tokens: Option<u64>, day_tokens: Option<u64>, day_cost: Option<f64>) -> Caps {
        Caps::new(&SpendCaps { run_tokens, day_tokens, day_cost, run_cost: None }).unwrap()
    }

    fn wish(least_tokens: u64, most_tokens: u64) -> Wish {
        Wish { least_tokens, most_tokens, picos_per_token: 20_000 }
    }

    #[test]
    fn a_day_ends_at_midnight_utc_and_a_clock_set_back_opens_none() {
        let (mut book, caps) = (Book::default(), caps(None, Some(100), None));
        assert_eq!(book.reserve(NOON, "a", &caps, wish(60, 60)).unwrap().amount.tokens, 60);
        assert_eq!(book.reserve(NOON, "b", &caps, wish(10, 60)).unwrap().amount.tokens, 40, "what is left");
        let full = book.reserve(NOON, "a", &caps, wish(1, 1)).unwrap_err();
        assert!(matches!(full, Error::SpendCapReached { scope: "day", spent_tokens: 100, .. }), "{full}");
        assert_eq!(book.reserve(TOMORROW, "a", &caps, wish(100, 100)).unwrap().amount.tokens, 100);
        assert!(book.reserve(NOON, "a", &caps, wish(1, 1)).is_err());
    }

    #[test]
    fn a_run_has_its_own_cap_over_days_and_crashes() {
        let (mut book, caps) = (Book::default(), caps(Some(100), None, None));
        book.reserve(NOON, "nightly", &caps, wish(80, 80)).unwrap();
        let mut read_again = Book::parse(Some(&book.render())).unwrap();
        assert_eq!(read_again, book);
        let full = read_again.reserve(TOMORROW, "nightly", &caps, wish(30, 30)).unwrap_err();
        assert!(matches!(full, Error::SpendCapReached { scope: "run", .. }), "{full}");
        assert!(read_again.reserve(TOMORROW, "other", &caps, wish(30, 30)).is_ok());
    }

    #[test]
    fn a_cap_in_currency_is_a_cap_in_tokens_by_the_price() {
        let (mut book, caps) = (Book::default(), caps(None, None, Some(0.02)));
        assert_eq!(book.reserve(NOON, "a", &caps, wish(1, 2_000_000)).unwrap().amount.tokens, 1_000_000);
        assert!(book.reserve(NOON, "a", &caps, wish(1, 1)).is_err());
        let free = Wish { picos_per_token: 0, ..wish(5, 5) };
        assert_eq!(book.reserve(NOON, "a", &caps, free).unwrap().amount.tokens, 5, "what costs nothing passes");
    }

    #[test]
    fn a_bill_after_midnight_belongs_to_the_day_before() {
        let (mut book, caps) = (Book::default(), caps(None, Some(100), None));
        let reserved = book.reserve(NOON, "a", &caps, wish(80, 80)).unwrap();
        book.settle(TOMORROW, "a", reserved, Spend::of(20, 20_000));
        let [today, run, total] = book.sums(TOMORROW, "a");
        assert_eq!((today.tokens, run.tokens, total.tokens), (0, 20, 20));
    }

    #[test]
    fn many_runs_do_not_make_the_ledger_grow() {
        let (mut book, caps) = (Book::default(), caps(Some(10), None, None));
        for run in 0..2000 {
            book.reserve(NOON, &run.to_string(), &caps, wish(1, 1)).unwrap();
        }
        assert!(book.runs.len() <= RUNS && book.runs.last().unwrap().id == "1999");
        assert!(Book::parse(Some("{")).is_err());
    }

    proptest! {
        /// Any interleaving of reserving, settling and losing reservations: the sums are what the oracle adds up, and no cap
        /// is ever passed where no bill is above its reservation.
        #[test]
        fn no_cap_is_passed_whatever_is_reserved_settled_or_lost(
            steps in prop::collection::vec((0_u64..50, 0_u64..50, 0.0_f64..1.0, any::<bool>(), 0_u8..3), 1..60),
        ) {
            let caps = caps(Some(300), Some(500), None);
            let mut book = Book::default();
            let mut expected = [0_u64; 3];
            for (least, more, share, is_lost, run) in steps {
                let id = run.to_string();
                if let Ok(reserved) = book.reserve(NOON, &id, &caps, wish(least, least + more)) {
                    prop_assert!((least..=least + more).contains(&reserved.amount.tokens));
                    let billed = (reserved.amount.tokens as f64 * share) as u64;
                    let counts = if is_lost { reserved.amount.tokens } else {
                        book.settle(NOON, &id, reserved, Spend::of(billed, 20_000));
                        billed
                    };
                    expected[usize::from(run)] += counts;
                }
                let [today, of_run, total] = book.sums(NOON, &id);
                prop_assert_eq!(today, Spend::of(expected.iter().sum(), 20_000));
                prop_assert_eq!(total, today);
                prop_assert_eq!(of_run.tokens, expected[usize::from(run)]);
                prop_assert!(today.tokens <= 500 && of_run.tokens <= 300);
            }
        }
    }
}
