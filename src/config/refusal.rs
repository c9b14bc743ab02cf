//! What is said of a file that is no TOML, or whose values are of the wrong kind: the key, its value, and what to give instead.

use toml::de::Error;

/// What TOML's reader says where a word or a table must stand, whichever words there are.
const NO_WORD: &str = "wanted string or table";
/// Longest value that is shown.
const LONGEST: usize = 60;

/// What is wrong with this text. `read` reads it as the types of the keys want it, and returns what it refuses.
pub(super) fn refusal(text: &str, mut error: Error, read: impl Fn(&str) -> Option<Error>) -> String {
    let message = error.message().trim_end().replace('\n', "; ");
    // Where a text is shown, the key is not.
    error.set_input(None);
    let shown = error.to_string();
    let key = shown.strip_prefix(error.message()).and_then(|rest| rest.trim().strip_prefix("in `")?.strip_suffix('`'));
    let Some(key) = key else { return message };
    let span = error.span().unwrap_or_default();
    let expected = if message == NO_WORD {
        // An empty word is none of those that there are, which are told then.
        let emptied = [&text[..span.start], "\"\"", &text[span.end..]].concat();
        read(&emptied).and_then(|error| expected(error.message()))
    } else {
        expected(&message)
    };
    match expected {
        Some(expected) => format!("{key} is {}: give {expected}", value(&text[span])),
        None => format!("{key}: {message}"),
    }
}

/// What serde wants in place of a value of another kind, out of its bounds, or that is none of its words.
fn expected(message: &str) -> Option<String> {
    let kinds = ["invalid type: ", "invalid value: ", "unknown variant "];
    kinds.iter().find(|kind| message.starts_with(**kind))?;
    // The value comes first, and may have any words in it; of those wanted none has these.
    let (_, wanted) = message.rsplit_once(", expected ")?;
    Some(match wanted {
        "u16" => format!("a whole number from 0 to {}", u16::MAX),
        "u32" => format!("a whole number from 0 to {}", u32::MAX),
        "u64" | "usize" => "a whole number, 0 or more".into(),
        "a boolean" => "true or false".into(),
        "a string" | "path string" => "a text in quotes".into(),
        "a sequence" => "a list in brackets, such as [0, 1]".into(),
        table if table.starts_with("struct ") => "a table".into(),
        other => other.into(),
    })
}

/// A value as it is written, on one line.
fn value(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}
