//! Money for requests: set aside in the ledger before anything is sent, drawn by each attempt, corrected to the bill when the
//! call ends.
//!
//! Guarantees: an attempt whose upper bound does not fit the caps is not sent; a process that dies leaves what its calls had
//! set aside counted as spent; a call costs two changes of the ledger, and more only where attempts are repeated or caps are
//! near.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::book::{Book, Caps, Reservation, Wish};
use super::spend::{Spend, SpendCaps, SpendLedger};
use super::timer::Timer;
use crate::error::{Error, Result};

/// Attempts to change the ledger against other processes. Each loss means that another one has won.
const RACES: u32 = 100;

/// Who pays: the ledger, the caps and the run.
pub(super) struct Account {
    caps: Caps,
    is_capped: bool,
    run: String,
    timer: Arc<dyn Timer>,
    ledger: Mutex<Option<Arc<dyn SpendLedger>>>,
    /// Within the process changes take turns; against other processes they race.
    turn: tokio::sync::Mutex<()>,
    /// Calls that hold money, of which most comes back.
    holders: Mutex<usize>,
    released: Notify,
}

impl Account {
    pub(super) fn new(caps: &SpendCaps, run: String, timer: Arc<dyn Timer>) -> Result<Self> {
        Ok(Self {
            is_capped: !caps.is_unlimited(),
            caps: Caps::new(caps)?,
            run,
            timer,
            ledger: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
            holders: Mutex::default(),
            released: Notify::new(),
        })
    }

    pub(super) fn attach(&self, ledger: Arc<dyn SpendLedger>) {
        *lock(&self.ledger) = Some(ledger);
    }

    /// What was spent or set aside: today, in this run, ever.
    pub(super) async fn sums(&self) -> Result<[Spend; 3]> {
        let text = self.ledger()?.read().await?;
        Ok(Book::parse(text.as_deref())?.sums(self.timer.now(), &self.run))
    }

    async fn reserve(&self, wish: Wish) -> Result<Reservation> {
        self.change(|book| book.reserve(self.timer.now(), &self.run, &self.caps, wish)).await
    }

    async fn reserve_after_others(&self, wish: Wish) -> Result<Reservation> {
        loop {
            // Before the try, so that an end in between is not missed.
            let released = self.released.notified();
            match self.reserve(wish).await {
                Err(Error::SpendCapReached { .. }) if *lock(&self.holders) > 0 => released.await,
                other => return other,
            }
        }
    }

    async fn change<T>(&self, mut change: impl FnMut(&mut Book) -> Result<T>) -> Result<T> {
        let ledger = self.ledger()?;
        let _turn = self.turn.lock().await;
        for _ in 0..RACES {
            let current = ledger.read().await?;
            let mut book = Book::parse(current.as_deref())?;
            let changed = change(&mut book)?;
            if ledger.replace(current.as_deref(), &book.render()).await? {
                return Ok(changed);
            }
        }
        Err(Error::Busy { purpose: "booking what was spent".into(), until: self.timer.now().to_rfc3339() })
    }

    fn ledger(&self) -> Result<Arc<dyn SpendLedger>> {
        lock(&self.ledger).clone().ok_or_else(|| Error::InvalidSetting {
            setting: "caps",
            reason: "a spend cap needs a ledger; open a bank with this embedder, or attach one".into(),
        })
    }
}

/// The money of one call of the embedder.
pub(super) struct Budget {
    account: Arc<Account>,
    /// The dearest provider's: it is not known yet who will be asked.
    picos_per_token: u64,
    pool: Mutex<Pool>,
    returned: Notify,
}

#[derive(Default)]
struct Pool {
    /// Tokens that are set aside and not drawn.
    free: u64,
    /// Attempts under way.
    drawn: u32,
    reservations: Vec<Reservation>,
    billed: Spend,
}

/// The money of one attempt. Dropped without [`Draw::bill`], all of it counts as billed.
pub(super) struct Draw<'a> {
    budget: &'a Budget,
    tokens: u64,
    bill: Option<Spend>,
}

impl Budget {
    /// Sets aside what all requests may cost, or as much of it as the caps leave; `bounds` has each request's most tokens.
    /// While other calls hold money, of which most comes back, waits for them; they never wait for this one, so it ends.
    ///
    /// # Errors
    /// [`Error::SpendCapReached`] if not even the first request fits.
    pub(super) async fn open(account: Arc<Account>, picos_per_token: u64, bounds: &[u64]) -> Result<Self> {
        let mut pool = Pool::default();
        if let (true, Some(first)) = (account.is_capped, bounds.first()) {
            let wish = Wish { least_tokens: *first, most_tokens: bounds.iter().sum(), picos_per_token };
            pool.add(account.reserve_after_others(wish).await?);
        }
        *lock(&account.holders) += 1;
        Ok(Self { account, picos_per_token, pool: Mutex::new(pool), returned: Notify::new() })
    }

    /// Takes what one attempt may cost out of the call's money, or sets more aside; while other attempts may still give some
    /// back, waits for them.
    ///
    /// # Errors
    /// [`Error::SpendCapReached`].
    pub(super) async fn draw(&self, tokens: u64) -> Result<Draw<'_>> {
        if !self.account.is_capped {
            return Ok(Draw { budget: self, tokens: 0, bill: None });
        }
        loop {
            // Before the look, so that what comes back in between wakes it.
            let returned = self.returned.notified();
            let Some(missing) = self.take(tokens) else { return Ok(Draw { budget: self, tokens, bill: None }) };
            let wish = Wish { least_tokens: missing, most_tokens: missing, picos_per_token: self.picos_per_token };
            match self.account.reserve(wish).await {
                Ok(reservation) => lock(&self.pool).add(reservation),
                Err(full @ Error::SpendCapReached { .. }) => {
                    let (free, drawn) = {
                        let pool = lock(&self.pool);
                        (pool.free, pool.drawn)
                    };
                    if free < tokens {
                        if drawn == 0 {
                            return Err(full);
                        }
                        returned.await;
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Corrects the ledger to what was billed. A failure leaves too much counted, never too little, so it only is logged.
    pub(super) async fn close(&self) {
        let (reservations, billed) = {
            let mut pool = lock(&self.pool);
            (std::mem::take(&mut pool.reservations), std::mem::take(&mut pool.billed))
        };
        if reservations.is_empty() {
            return;
        }
        let account = &self.account;
        let settled = account.change(|book| {
            for (number, reserved) in reservations.iter().enumerate() {
                // All of it on the first: mostly there is one.
                let bill = if number == 0 { billed } else { Spend::default() };
                book.settle(account.timer.now(), &account.run, *reserved, bill);
            }
            Ok(())
        });
        if let Err(error) = settled.await {
            tracing::warn!(%error, "what was set aside stays counted as spent");
        }
    }

    /// Takes the tokens, or says how many are missing.
    fn take(&self, tokens: u64) -> Option<u64> {
        let mut pool = lock(&self.pool);
        match tokens.checked_sub(pool.free) {
            None | Some(0) => {
                pool.free -= tokens;
                pool.drawn += 1;
                None
            }
            missing => missing,
        }
    }
}

impl Drop for Budget {
    fn drop(&mut self) {
        *lock(&self.account.holders) -= 1;
        self.account.released.notify_waiters();
    }
}

impl Pool {
    fn add(&mut self, reservation: Reservation) {
        self.free = self.free.saturating_add(reservation.amount.tokens);
        self.reservations.push(reservation);
    }
}

impl Draw<'_> {
    /// The provider's bill for the attempt.
    pub(super) fn bill(mut self, tokens: u64, picos_per_token: u64) {
        self.bill = Some(Spend::of(tokens, picos_per_token));
    }

    /// The bill where the provider does not say, or may have worked without being heard: all that was drawn.
    pub(super) fn bill_all(self) {}
}

impl Drop for Draw<'_> {
    fn drop(&mut self) {
        if !self.budget.account.is_capped {
            return;
        }
        let bill = self.bill.unwrap_or(Spend::of(self.tokens, self.budget.picos_per_token));
        let mut pool = lock(&self.budget.pool);
        pool.drawn -= 1;
        pool.billed += bill;
        // A bill above the bound eats into what is set aside for others.
        pool.free = (pool.free + self.tokens).saturating_sub(bill.tokens);
        drop(pool);
        self.budget.returned.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(super) mod tests {
    use async_trait::async_trait;

    use super::super::timer::tests::Skipping;
    use super::*;

    /// A ledger in memory that counts its changes.
    #[derive(Default)]
    pub(in super::super) struct Memory(Mutex<(Option<String>, u32)>);

    #[async_trait]
    impl SpendLedger for Memory {
        async fn read(&self) -> Result<Option<String>> {
            Ok(self.0.lock().unwrap().0.clone())
        }

        async fn replace(&self, expected: Option<&str>, new: &str) -> Result<bool> {
            tokio::task::yield_now().await;
            let mut cell = self.0.lock().unwrap();
            if cell.0.as_deref() != expected {
                return Ok(false);
            }
            *cell = (Some(new.to_owned()), cell.1 + 1);
            Ok(true)
        }
    }

    fn account(ledger: &Arc<Memory>, day_tokens: u64) -> Arc<Account> {
        let caps = SpendCaps { day_tokens: Some(day_tokens), ..SpendCaps::default() };
        let account = Account::new(&caps, "run".into(), Arc::new(Skipping::default())).unwrap();
        account.attach(ledger.clone());
        Arc::new(account)
    }

    async fn today(account: &Account) -> u64 {
        account.sums().await.unwrap()[0].tokens
    }

    #[tokio::test]
    async fn a_call_sets_aside_once_and_corrects_once() {
        let ledger = Arc::new(Memory::default());
        let account = account(&ledger, 1000);
        let budget = Budget::open(account.clone(), 1, &[100, 100, 100]).await.unwrap();
        for _ in 0..3 {
            budget.draw(100).await.unwrap().bill(25, 1);
        }
        assert_eq!(today(&account).await, 300, "set aside until the call ends");
        budget.close().await;
        assert_eq!((today(&account).await, ledger.0.lock().unwrap().1), (75, 2));
    }

    #[tokio::test]
    async fn what_is_given_back_pays_for_the_next_request_when_the_cap_is_near() {
        let ledger = Arc::new(Memory::default());
        let account = account(&ledger, 250);
        let budget = Budget::open(account.clone(), 1, &[100; 8]).await.unwrap();
        let (first, second) = (budget.draw(100).await.unwrap(), budget.draw(100).await.unwrap());
        // Both are under way, 50 are left: the third waits for one of them.
        let third = async { budget.draw(100).await.map(|draw| draw.bill(25, 1)) };
        let others = async {
            tokio::task::yield_now().await;
            first.bill(25, 1);
            second.bill(25, 1);
        };
        let (third, ()) = tokio::join!(third, others);
        third.unwrap();
        budget.draw(100).await.unwrap().bill_all();
        // 175 are billed; a request that might cost 100 does not fit any more.
        assert!(matches!(budget.draw(100).await, Err(Error::SpendCapReached { .. })));
        budget.close().await;
        assert_eq!(today(&account).await, 175);
    }

    #[tokio::test]
    async fn a_call_that_dies_stays_counted_in_full() {
        let ledger = Arc::new(Memory::default());
        let budget = Budget::open(account(&ledger, 1000), 1, &[400, 400]).await.unwrap();
        budget.draw(400).await.unwrap().bill(10, 1);
        drop(budget);
        let next = account(&ledger, 1000);
        assert_eq!(today(&next).await, 800);
        assert!(matches!(Budget::open(next, 1, &[400]).await, Err(Error::SpendCapReached { .. })));
    }

    #[tokio::test]
    async fn a_second_call_waits_for_what_the_first_gives_back() {
        let ledger = Arc::new(Memory::default());
        let account = account(&ledger, 250);
        let first = Budget::open(account.clone(), 1, &[200]).await.unwrap();
        let second = Budget::open(account.clone(), 1, &[200]);
        let end_of_first = async {
            first.draw(200).await.unwrap().bill(30, 1);
            first.close().await;
            drop(first);
        };
        let (second, ()) = tokio::join!(second, end_of_first);
        second.unwrap().draw(200).await.unwrap().bill_all();
        assert_eq!(today(&account).await, 230);
        assert!(matches!(Budget::open(account, 1, &[21]).await, Err(Error::SpendCapReached { .. })));
    }

    #[tokio::test]
    async fn racing_processes_never_pass_the_cap_together() {
        let ledger = Arc::new(Memory::default());
        let tasks = (0..20).map(|_| {
            // An account of its own, as another process has.
            let account = account(&ledger, 1000);
            tokio::spawn(async move { Budget::open(account, 1, &[90]).await.is_ok() })
        });
        let won = futures::future::join_all(tasks.collect::<Vec<_>>()).await;
        assert_eq!(won.into_iter().filter(|won| *won.as_ref().unwrap()).count(), 11);
    }

    #[tokio::test]
    async fn a_cap_without_a_ledger_is_refused_and_no_cap_needs_none() {
        let timer = || Arc::new(Skipping::default());
        let caps = SpendCaps { run_tokens: Some(1), ..SpendCaps::default() };
        let capped = Arc::new(Account::new(&caps, "run".into(), timer()).unwrap());
        assert!(matches!(Budget::open(capped, 1, &[1]).await, Err(Error::InvalidSetting { .. })));
        let free = Arc::new(Account::new(&SpendCaps::default(), "run".into(), timer()).unwrap());
        let budget = Budget::open(free, 1, &[1]).await.unwrap();
        budget.draw(10).await.unwrap().bill(10, 1);
        budget.close().await;
    }
}
