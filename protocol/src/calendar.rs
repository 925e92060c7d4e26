//! Days and months, in UTC: those of the books, and how times are shown.

/// Milliseconds of a day.
pub const DAY_MS: u64 = 86_400_000;

/// Days since 1970.
#[must_use]
pub fn day(ms: u64) -> i64 {
    i64::try_from(ms / DAY_MS).unwrap_or(i64::MAX)
}

/// Months since the year 0 of that time: year × 12 + month − 1.
#[must_use]
pub fn month(ms: u64) -> i64 {
    let (year, month, _) = civil(day(ms));
    year * 12 + month - 1
}

/// Year, month and day of the month of a day since 1970, by the proleptic Gregorian calendar: years
/// are counted from March, so that the leap day is the last of its year, in eras of 400 years.
#[must_use]
pub fn civil(day: i64) -> (i64, i64, i64) {
    let shifted = day + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The day since 1970 of a date.
#[must_use]
pub fn from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// When a day since 1970 begins, in milliseconds.
#[must_use]
pub fn day_start_ms(day: i64) -> u64 {
    u64::try_from(day).unwrap_or(0).saturating_mul(DAY_MS)
}

/// When a month (see [`month`]) begins, in milliseconds.
#[must_use]
pub fn month_start_ms(month: i64) -> u64 {
    day_start_ms(from_civil(month.div_euclid(12), month.rem_euclid(12) + 1, 1))
}

/// A day as `2026-11-25`.
#[must_use]
pub fn day_text(of: i64) -> String {
    let (year, month, day) = civil(of);
    format!("{year:04}-{month:02}-{day:02}")
}

/// A month as `2026-11`.
#[must_use]
pub fn month_text(month: i64) -> String {
    format!("{:04}-{:02}", month.div_euclid(12), month.rem_euclid(12) + 1)
}

/// Reads `2026-11-25`, a day that there is.
#[must_use]
pub fn parse_day(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-').map(|part| part.parse::<i64>().ok());
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    // As far as times in milliseconds reach, and no further.
    if !(1..=9999).contains(&year) || !(1..=31).contains(&day) {
        return None;
    }
    let found = from_civil(year, month, day);
    ((1..=12).contains(&month) && civil(found) == (year, month, day)).then_some(found)
}

/// A time as `2026-11-25 13:00:00Z`, to the second.
#[must_use]
pub fn time_text(ms: u64) -> String {
    let seconds = ms / 1000 % 86_400;
    format!("{} {:02}:{:02}:{:02}Z", day_text(day(ms)), seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_read_as_dates() {
        assert_eq!(time_text(0), "1970-01-01 00:00:00Z");
        assert_eq!(time_text(951_782_399_000), "2000-02-28 23:59:59Z");
        assert_eq!(time_text(1_795_438_800_000), "2026-11-23 13:00:00Z");
    }

    #[test]
    fn days_and_dates_are_the_same_both_ways() {
        let (mut year, mut month, mut date) = (1970, 1, 1);
        for number in 0..200_000 {
            assert_eq!(civil(number), (year, month, date));
            assert_eq!(from_civil(year, month, date), number);
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let last = match month {
                2 if leap => 29,
                2 => 28,
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            date += 1;
            if date > last {
                (month, date) = (month + 1, 1);
            }
            if month > 12 {
                (year, month) = (year + 1, 1);
            }
        }
    }

    #[test]
    fn texts_and_borders() {
        let noon = day_start_ms(from_civil(2026, 12, 31)) + DAY_MS / 2;
        assert_eq!((day_text(day(noon)), month_text(month(noon))), ("2026-12-31".into(), "2026-12".into()));
        assert_eq!(month_start_ms(month(noon) + 1), day_start_ms(from_civil(2027, 1, 1)));
        assert_eq!(parse_day("2024-02-29"), Some(from_civil(2024, 2, 29)));
        for wrong in ["2026-02-29", "2026-13-01", "2026-00-01", "2026-1", "x-y-z", ""] {
            assert_eq!(parse_day(wrong), None, "{wrong}");
        }
    }
}
