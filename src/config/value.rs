//! Values of a file, each as the text that the command line would have for it.

use std::time::Duration;

use toml_edit::{Item, Value};

use crate::cli::flags::{self, Flag, Kind};

/// Units of a duration, in milliseconds.
const UNITS: [(&str, u64); 5] = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// The longest duration: attributes that a guest trusts for longer than that would outlive it.
const LONGEST: Duration = Duration::from_secs(365 * 86_400);

/// A number with a unit.
pub(super) fn duration_of(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let unit = UNITS.iter().find(|(name, _)| *name == unit).map(|(_, ms)| *ms);
    let (Ok(number), Some(unit)) = (number.parse::<u64>(), unit) else {
        return Err(format!("'{text}' is no duration such as 500ms, 60s, 1m or 1h"));
    };
    let duration = number.checked_mul(unit).map(Duration::from_millis).filter(|duration| *duration <= LONGEST);
    duration.ok_or_else(|| format!("'{text}' is longer than a year"))
}

/// An item that is a duration.
pub(super) fn duration(item: &Item) -> Result<Duration, String> {
    item.as_str().ok_or_else(|| wrong_type("a duration such as 60s", item)).and_then(duration_of)
}

/// A duration as [`duration_of`] reads it.
pub(super) fn show_duration(duration: Duration) -> String {
    match (duration.as_secs(), duration.subsec_millis()) {
        (seconds, 0) => format!("{seconds}s"),
        _ => format!("{}ms", duration.as_millis()),
    }
}

/// What an item is, for an error.
fn found(item: &Item) -> &'static str {
    match item {
        Item::None => "nothing",
        Item::Value(Value::String(_)) => "a string",
        Item::Value(Value::Integer(_)) => "an integer",
        Item::Value(Value::Float(_)) => "a fraction",
        Item::Value(Value::Boolean(_)) => "true or false",
        Item::Value(Value::Datetime(_)) => "a date or time",
        Item::Value(Value::Array(_)) => "a list",
        Item::Value(Value::InlineTable(_)) | Item::Table(_) => "a table",
        Item::ArrayOfTables(_) => "tables",
    }
}

/// The error for an item that is not what is `expected`.
pub(super) fn wrong_type(expected: &str, item: &Item) -> String {
    format!("expected {expected}, found {}", found(item))
}

/// A string.
pub(super) fn text(item: &Item) -> Result<&str, String> {
    item.as_str().ok_or_else(|| wrong_type("a string", item))
}

/// True or false.
pub(super) fn switch(item: &Item) -> Result<bool, String> {
    item.as_bool().ok_or_else(|| wrong_type("true or false", item))
}

/// A value of a store's key.
pub(super) fn of_store(item: &Item) -> Result<String, String> {
    let integer = || item.as_integer().map(|number| number.to_string());
    let text = item.as_str().map(str::to_owned).or_else(integer).or_else(|| item.as_bool().map(|on| on.to_string()));
    text.ok_or_else(|| wrong_type("a string", item))
}

/// A value of a flag: one text, several for a list.
pub(super) fn of_flag(flag: &Flag, item: &Item) -> Result<Vec<String>, String> {
    let values = match flag.kind {
        Kind::Switch => return Ok(vec![switch(item)?.to_string()]),
        Kind::Number => vec![item.as_integer().ok_or_else(|| wrong_type("an integer", item))?.to_string()],
        Kind::Size => match item.as_integer() {
            Some(bytes) => vec![bytes.to_string()],
            None => vec![item.as_str().ok_or_else(|| wrong_type("a size such as 64M", item))?.to_owned()],
        },
        Kind::Seconds => match (item.as_integer(), item.as_str()) {
            (Some(seconds), _) => vec![seconds.to_string()],
            (None, Some(text)) => vec![seconds(text)?.to_string()],
            (None, None) => return Err(wrong_type("a duration such as 60s", item)),
        },
        Kind::Milliseconds => match (item.as_integer(), item.as_str()) {
            (Some(ms), _) => vec![ms.to_string()],
            (None, Some(text)) => vec![milliseconds(text)?.to_string()],
            (None, None) => return Err(wrong_type("a duration such as 500ms", item)),
        },
        Kind::Text => vec![text(item)?.to_owned()],
        Kind::List => match item.as_array() {
            Some(list) => {
                let texts = list.iter().map(|value| value.as_str().map(str::to_owned));
                texts.collect::<Option<_>>().ok_or("expected a list of strings, found something else in it")?
            }
            None => vec![item.as_str().ok_or_else(|| wrong_type("a list of strings", item))?.to_owned()],
        },
    };
    values.iter().try_for_each(|value| flags::check(&flag.name, value))?;
    Ok(values)
}

/// Whole seconds, with or without a unit.
fn seconds(text: &str) -> Result<u64, String> {
    if let Ok(seconds) = text.parse() {
        return Ok(seconds);
    }
    let duration = duration_of(text)?;
    if duration.subsec_nanos() != 0 {
        return Err(format!("'{text}' is not a whole number of seconds"));
    }
    Ok(duration.as_secs())
}

/// Milliseconds, or a duration with a unit.
fn milliseconds(text: &str) -> Result<u128, String> {
    text.parse().or_else(|_| duration_of(text).map(|duration| duration.as_millis()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, ms) in
            [("500ms", 500), ("60s", 60_000), ("1m", 60_000), ("1h", 3_600_000), ("2d", 172_800_000), ("0s", 0)]
        {
            assert_eq!(duration_of(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(duration_of(&show_duration(Duration::from_millis(ms))), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "60", "s", "-1s", "1.5s", "1 s", "60S", "1w", "99999999999999999999s", "366d"] {
            assert!(duration_of(text).is_err(), "{text}");
        }
    }

    #[test]
    fn seconds_may_have_units() {
        assert_eq!((seconds("90"), seconds("90s"), seconds("2m")), (Ok(90), Ok(90), Ok(120)));
        assert_eq!((milliseconds("90"), milliseconds("2s")), (Ok(90), Ok(2000)));
        assert!(seconds("500ms").is_err() && seconds("1x").is_err());
    }
}
