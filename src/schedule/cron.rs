//! Cron expressions in a time zone: when the next run is due.
//!
//! Guarantees: a wall-clock time that a change to summer time leaves out is due once, as soon as the gap is over; one that a
//! change to winter time brings twice is due once, the first time. An expression for every hour (`*` in the second field) goes
//! by the time that passes instead: nothing is moved, and nothing is left out. Must not know: what runs, or whether it did.
//!
//! The expression is parsed, and its dates are found, by the crate `cronexpr`. By itself that would leave out what falls into
//! the gap, a nightly run of half past two among it, and would run twice what comes twice; so it is asked for wall-clock times,
//! and these are placed here.

use std::fmt;

use cronexpr::jiff::civil::DateTime;
use cronexpr::jiff::tz::{AmbiguousOffset, TimeZone};
use cronexpr::jiff::{Timestamp as Instant, ToSpan};
use cronexpr::{Crontab, FallbackTimezoneOption, MakeTimestamp, ParseOptions};

use crate::clock::Timestamp;
use crate::error::{Error, Result};

/// When runs are due: five cron fields (minute, hour, day of month, month, day of week) and a time zone.
///
/// Names of months and days, ranges, lists, steps, `L`, `W` and `#` are known. If both day fields are restricted a day need
/// fit one of them alone, as in Vixie's cron.
#[derive(Clone)]
pub struct CronSchedule {
    expression: String,
    zone: TimeZone,
    /// Finds wall-clock times, which it takes for UTC.
    walls: Crontab,
    /// Whether it is for every hour.
    is_hourly: bool,
}

impl CronSchedule {
    /// Reads an expression, as `0 3 * * *`, and the name of a time zone, as `Europe/Berlin`; without one it is the machine's.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] with what is wrong, for an expression that no date will ever fit too.
    pub fn parse(expression: &str, time_zone: Option<&str>) -> Result<Self> {
        let expression = expression.split_whitespace().collect::<Vec<_>>().join(" ");
        let fields = expression.split(' ').count();
        if fields != 5 {
            let reason = format!(
                "`{expression}` has {fields} fields; write five: minute, hour, day of month, month, day of week"
            );
            return Err(Error::InvalidSetting { setting: "cron", reason });
        }
        let mut options = ParseOptions::default();
        options.fallback_timezone_option = FallbackTimezoneOption::UTC;
        let walls = cronexpr::parse_crontab_with(&expression, options).map_err(|e| wrong(&expression, &e))?;
        let zone = time_zone.map_or_else(|| Ok(TimeZone::system()), find_zone)?;
        // A step counts from midnight, so it is for every hour only if it is of one.
        let is_hourly = expression.split(' ').nth(1) == Some("*");
        let schedule = Self { expression, zone, walls, is_hourly };
        let is_never = schedule.next_wall(DateTime::default()).is_none();
        if is_never {
            let reason = format!("`{}` fits no date", schedule.expression);
            return Err(Error::InvalidSetting { setting: "cron", reason });
        }
        Ok(schedule)
    }

    /// The first moment after this one at which a run is due; `None` beyond the end of the calendar.
    pub fn next_after(&self, moment: Timestamp) -> Option<Timestamp> {
        let start = Instant::from_microsecond(moment.0).ok()?;
        let due = if self.is_hourly { self.next_as_time_passes(start) } else { self.next_by_the_wall(start) };
        due.map(|due| Timestamp(due.as_microsecond()))
    }

    fn next_by_the_wall(&self, start: Instant) -> Option<Instant> {
        let mut wall = self.zone.to_datetime(start);
        loop {
            wall = self.next_wall(wall)?;
            let due = self.place(wall)?;
            // Not so only while an hour passes for the second time, whose wall-clock times are all placed in the first.
            if due > start {
                return Some(due);
            }
        }
    }

    fn next_as_time_passes(&self, start: Instant) -> Option<Instant> {
        let (mut looked_to, mut offset) = (start, self.zone.to_offset(start));
        let mut from = offset.to_datetime(start);
        loop {
            let due = offset.to_timestamp(self.next_wall(from)?).ok()?;
            let Some(change) = self.zone.following(looked_to).next().filter(|change| change.timestamp() <= due) else {
                return Some(due);
            };
            (looked_to, offset) = (change.timestamp(), change.offset());
            // The moment of the change may be one that is looked for.
            from = offset.to_datetime(looked_to).checked_sub(1.minute()).ok()?;
        }
    }

    /// The first wall-clock time after this one that fits.
    fn next_wall(&self, after: DateTime) -> Option<DateTime> {
        let after = TimeZone::UTC.to_timestamp(after).ok()?;
        self.walls.find_next(MakeTimestamp(after)).ok().map(|found| found.datetime())
    }

    /// The moment of a wall-clock time.
    fn place(&self, wall: DateTime) -> Option<Instant> {
        let placed = match self.zone.to_ambiguous_timestamp(wall).offset() {
            AmbiguousOffset::Unambiguous { offset } => offset.to_timestamp(wall),
            AmbiguousOffset::Fold { before, .. } => before.to_timestamp(wall),
            AmbiguousOffset::Gap { before, after } => {
                // Read with the later offset it lies before the change, with the earlier one behind it.
                let earlier = after.to_timestamp(wall).ok()?;
                match self.zone.following(earlier).next() {
                    Some(change) => Ok(change.timestamp()),
                    None => before.to_timestamp(wall),
                }
            }
        };
        placed.ok()
    }

    /// The time zone's name; an offset where it has none.
    pub fn time_zone(&self) -> String {
        self.zone.iana_name().map_or_else(|| "the machine's own".to_owned(), ToOwned::to_owned)
    }

    /// A moment on this time zone's clock, for people: `2026-10-25 03:00:00+01:00`.
    pub fn local(&self, moment: Timestamp) -> String {
        let Ok(moment) = Instant::from_microsecond(moment.0) else { return moment.to_rfc3339() };
        moment.to_zoned(self.zone.clone()).strftime("%F %T%:z").to_string()
    }
}

impl fmt::Display for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.expression, self.time_zone())
    }
}

impl fmt::Debug for CronSchedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CronSchedule({self})")
    }
}

fn find_zone(name: &str) -> Result<TimeZone> {
    TimeZone::get(name).map_err(|_| Error::InvalidSetting {
        setting: "timezone",
        reason: format!(
            "`{name}` is not known on this machine; write a name such as Europe/Berlin or UTC, and have the \
             package tzdata installed"
        ),
    })
}

fn wrong(expression: &str, error: &cronexpr::Error) -> Error {
    // Its last line says what is wrong; those before draw a picture of where.
    let said = error.to_string();
    let said = said.lines().next_back().unwrap_or_default().trim_start_matches([' ', '^']).to_owned();
    Error::InvalidSetting { setting: "cron", reason: format!("`{expression}`: {said}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin(expression: &str) -> CronSchedule {
        CronSchedule::parse(expression, Some("Europe/Berlin")).unwrap()
    }

    fn moment(text: &str) -> Timestamp {
        Timestamp(text.parse::<Instant>().unwrap().as_microsecond())
    }

    /// The next runs after a moment, on the zone's own clock.
    fn runs(schedule: &CronSchedule, after: &str, count: usize) -> Vec<String> {
        let mut at = moment(after);
        (0..count)
            .map(|_| {
                at = schedule.next_after(at).unwrap();
                schedule.local(at)
            })
            .collect()
    }

    #[test]
    fn a_time_that_does_not_exist_runs_once_after_the_gap() {
        // Clocks go from 02:00 to 03:00 on 29 March 2026.
        let nightly = berlin("30 2 * * *");
        let days = ["2026-03-28 02:30:00+01:00", "2026-03-29 03:00:00+02:00", "2026-03-30 02:30:00+02:00"];
        assert_eq!(runs(&nightly, "2026-03-27T12:00:00Z", 3), days);
        // Several of them, and the end of the gap itself, are one run.
        let often = berlin("0,20,40 2-3 * * *");
        let hours = ["2026-03-29 03:00:00+02:00", "2026-03-29 03:20:00+02:00", "2026-03-29 03:40:00+02:00"];
        assert_eq!(runs(&often, "2026-03-28T12:00:00Z", 3), hours);
    }

    #[test]
    fn a_time_that_exists_twice_runs_once() {
        // Clocks go from 03:00 back to 02:00 on 25 October 2026.
        let nightly = berlin("30 2 * * *");
        let days = ["2026-10-25 02:30:00+02:00", "2026-10-26 02:30:00+01:00"];
        assert_eq!(runs(&nightly, "2026-10-24T12:00:00Z", 2), days);
        // Also for somebody who first looks while the hour passes for the second time.
        assert_eq!(runs(&nightly, "2026-10-25T01:10:00Z", 1), days[1..]);
    }

    #[test]
    fn what_is_due_every_hour_goes_by_the_time_that_passes() {
        let hourly = berlin("0 * * * *");
        let gap = ["2026-03-29 01:00:00+01:00", "2026-03-29 03:00:00+02:00", "2026-03-29 04:00:00+02:00"];
        assert_eq!(runs(&hourly, "2026-03-28T23:30:00Z", 3), gap);
        let fold = ["2026-10-25 02:00:00+02:00", "2026-10-25 02:00:00+01:00", "2026-10-25 03:00:00+01:00"];
        assert_eq!(runs(&hourly, "2026-10-24T23:30:00Z", 3), fold);
    }

    #[test]
    fn a_year_of_nightly_runs_is_one_a_day_in_every_zone() {
        // Gaps at midnight (Santiago), of half an hour (Lord Howe), and none at all.
        for zone in ["Europe/Berlin", "America/Santiago", "Australia/Lord_Howe", "Asia/Kolkata", "UTC"] {
            for expression in ["0 3 * * *", "30 2 * * *", "5 0 * * *", "0 0 * * *"] {
                let schedule = CronSchedule::parse(expression, Some(zone)).unwrap();
                let start = "2026-01-01T00:00".parse::<DateTime>().unwrap();
                let start = schedule.zone.to_timestamp(start).unwrap().as_microsecond() - 1;
                let mut at = Timestamp(start);
                let mut dates = Vec::new();
                for _ in 0..365 {
                    at = schedule.next_after(at).unwrap();
                    dates.push(schedule.local(at)[..10].to_owned());
                }
                let mut days = dates.clone();
                days.dedup();
                assert_eq!(days.len(), 365, "{zone} {expression}");
                assert_eq!((days[0].as_str(), days[364].as_str()), ("2026-01-01", "2026-12-31"), "{zone} {expression}");
            }
        }
    }

    #[test]
    fn what_cannot_be_read_is_refused_with_the_reason() {
        for (expression, zone, said) in [
            ("0 3 * *", None, "has 4 fields"),
            ("0 3 * * * *", None, "has 6 fields"),
            ("0 25 * * *", None, "0..=23"),
            ("0 3 31 2 *", None, "fits no date"),
            ("0 3 * * FRY", None, "`0 3 * * FRY`: "),
            ("0 3 * * *", Some("Europe/Atlantis"), "Europe/Atlantis"),
        ] {
            let refused = CronSchedule::parse(expression, zone).unwrap_err().to_string();
            assert!(refused.contains(said) && !refused.contains('\n'), "{refused}");
        }
    }
}
