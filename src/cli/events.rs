//! `ringspan events`.

use std::io::Write;

use serde_json::{Map, Value, json};

use super::Failure;
use super::client::Client;

pub(super) fn run(mut client: Client, after: Option<u64>, follow: bool, as_json: bool) -> Result<(), Failure> {
    let params = match after {
        Some(after) => json!({ "after": after }),
        None if follow => json!({}),
        None => json!({ "after": 0 }),
    };
    let subscribed = client.call("events.subscribe", params)?;
    let last = subscribed["last"].as_u64().unwrap_or(0);
    let mut seen = after.unwrap_or(if follow { last } else { 0 });
    client.wait_without_limit()?;
    while follow || seen < last {
        let Some(message) = client.next_message()? else {
            return Err(Failure::Unreachable(format!("the daemon ended; go on with --after {seen}")));
        };
        let params = &message["params"];
        seen = params["sequence"].as_u64().or(params["to"].as_u64()).unwrap_or(seen);
        let mut out = std::io::stdout().lock();
        match (as_json, message["method"].as_str()) {
            (true, _) => writeln!(out, "{message}")?,
            (false, Some("missed")) => {
                writeln!(out, "events {} to {} are not kept any more", params["from"], params["to"])?;
            }
            (false, _) => writeln!(out, "{}", line(params))?,
        }
    }
    Ok(())
}

/// `17 2026-11-22T10:00:00.123Z main/vm1 driver-ready pairs=1`
fn line(event: &Value) -> String {
    let text = |key: &str| event[key].as_str().unwrap_or_default();
    let about = match (text("lane"), text("port")) {
        ("", "") => "-".to_owned(),
        ("", port) => port.to_owned(),
        (lane, "") => lane.to_owned(),
        (lane, port) => format!("{lane}/{port}"),
    };
    let time = utc(event["time_ms"].as_u64().unwrap_or(0));
    let known = ["sequence", "time_ms", "lane", "port", "event"];
    let nothing = Map::new();
    let details = event.as_object().unwrap_or(&nothing).iter().filter(|(key, _)| !known.contains(&key.as_str()));
    let details: String = details.map(|(key, value)| format!(" {key}={value}")).collect();
    format!("{} {time} {about} {}{details}", event["sequence"], text("event"))
}

/// Milliseconds since the Unix epoch as a date in UTC (days to civil date after Howard Hinnant's public-domain algorithm).
fn utc(ms: u64) -> String {
    let (days, of_day) = ((ms / 86_400_000) as i64, ms % 86_400_000);
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, milli) = (of_day / 1000 % 60, of_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = json!({ "sequence": 17, "time_ms": 1_582_977_845_006_u64, "lane": "main", "port": "vm1", "event": "driver-ready", "pairs": 1 });
        assert_eq!(line(&event), "17 2020-02-29T12:04:05.006Z main/vm1 driver-ready pairs=1");
        assert_eq!(utc(0), "1970-01-01T00:00:00.000Z");
    }
}
