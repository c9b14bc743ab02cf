//! Taking away what [`super::add`] did.

use super::super::Host;
use super::super::steps::Steps;
use super::add::{check_name, take};
use super::node::Place;
use super::{Book, Gone, is_there, write};
use crate::error::{Error, ErrorKind};

/// Takes a device away that ringspan made, or gives one that was there back to the driver that it had. One that others made is taken away with `disturb`.
/// `owner` knows the port of ringspan's that names a node.
pub(crate) fn remove(
    host: &Host,
    book: &impl Book,
    name: &str,
    disturb: bool,
    owner: impl Fn(&str) -> Option<String>,
) -> Result<Gone, Error> {
    check_name(name)?;
    let place = Place::new(host, name);
    let entry = book.load()?.remove(name);
    let mut steps = Steps::default();
    if !place.is_there() {
        // Somebody else has taken it away.
        if entry.is_some() {
            write(book, name, None)?;
        }
        return Ok(Gone { done: vec![] });
    }
    let entry = entry.filter(|entry| is_there(host, name, entry));
    let port = entry.as_ref().and_then(|entry| entry.port.as_ref().map(ToString::to_string));
    if let Some(port) = port.or_else(|| place.node().as_deref().and_then(owner)) {
        let message = format!("{name}: the port {port} has it: remove that first (ringspan port remove {port})");
        return Err(Error { errno: Some(libc::EBUSY), ..Error::new(ErrorKind::Busy, message) }.about(name));
    }
    place.unused()?;
    match entry {
        Some(entry) if !entry.made => {
            place.restore(entry.driver.as_deref())?;
            let driver = entry.driver.as_deref().unwrap_or("no driver");
            steps.note(format!("{name} stays, and {driver} has it again: ringspan did not make it"));
            write(book, name, None)?;
        }
        Some(_) => {
            place.quiet(disturb)?;
            take(host, book, name)?;
            steps.note(format!("{name} is gone"));
        }
        None if !disturb => {
            let message = format!("{name}: ringspan did not make it: say --disturb to take it away all the same");
            return Err(Error::new(ErrorKind::Conflict, message).about(name));
        }
        None => {
            take(host, book, name)?;
            steps.note(format!("{name} is gone, which others had made"));
        }
    }
    Ok(Gone { done: steps.finish() })
}
