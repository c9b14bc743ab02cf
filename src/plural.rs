//! Numbers in sentences.

/// `1 flow`, `2 flows`: a number of things whose plural is made with an s.
pub(crate) fn number_of(count: impl TryInto<u64>, thing: &str) -> String {
    // What does not fit is many.
    let count = count.try_into().unwrap_or(u64::MAX);
    let ending = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{ending}")
}

#[cfg(test)]
mod tests {
    use super::number_of;

    #[test]
    fn one_thing_is_no_plural() {
        assert_eq!([0, 1, 2].map(|count| number_of(count, "flow")), ["0 flows", "1 flow", "2 flows"]);
    }
}
