//! Any bytes as what a daemon of OVS's sends: no panic, the same objects wherever the stream is cut, and each that is JSON is whole; a long text's
//! lines are those that a JSON parser finds.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ringspan_fuzz::ovs_stream::{lines, objects};
use serde_json::{Deserializer, Value};

fuzz_target!(|bytes: &[u8]| {
    let Some((&cut, stream)) = bytes.split_first() else { return };
    let cut = usize::from(cut).min(stream.len());
    let (first, rest) = stream.split_at(cut);
    let whole = objects([stream]);
    assert_eq!(objects([first, rest]), whole);
    assert_eq!(objects(stream.chunks(1)), whole);
    // As far as a JSON parser comes, it finds the same.
    let parsed: Vec<Value> = Deserializer::from_slice(stream).into_iter().map_while(Result::ok).collect();
    for (value, object) in parsed.iter().take_while(|value| value.is_object()).zip(&whole.0) {
        assert_eq!(serde_json::from_slice::<Value>(object).ok().as_ref(), Some(value));
    }

    let alone = lines([stream]);
    // Before the text begins an end may be seen where the stream is cut, and the answer is then read whole.
    for pieces in [lines([first, rest]), lines(stream.chunks(1))] {
        if let (Ok(pieces), Ok(alone)) = (&pieces, &alone) {
            assert_eq!(pieces.0, alone.0);
        }
    }
    // As OVS prints an answer with this text.
    if let Ok(text) = str::from_utf8(stream) {
        let answer = format!(r#"{{"error":null,"id":7,"result":{}}}"#, Value::from(text)).into_bytes();
        let cut = cut.min(answer.len());
        let (found, around) = lines([&answer[..cut], &answer[cut..]]).expect("an answer with a text");
        let mut expected: Vec<&[u8]> = text.split('\n').map(str::as_bytes).collect();
        if expected.last().is_some_and(|last| last.is_empty()) {
            expected.pop();
        }
        assert_eq!(found, expected);
        assert!(serde_json::from_slice::<Value>(&around.expect("its end")).is_ok_and(|around| around["result"] == ""));
    }
});
