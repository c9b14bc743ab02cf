//! ovsdb-server, RFC 7047: transactions on the database `Open_vSwitch`, and word of what changes there.

use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::rpc::{Note, words};
use super::{Bounds, OvsError, Place, Rpc};

/// How the daemon is called in errors.
const PEER: &str = "ovsdb-server";
/// Changes that count as one.
const AT_ONCE: usize = 1000;
/// The database.
const NAME: &str = "Open_vSwitch";

/// A connection to the database server.
#[derive(Debug)]
pub(crate) struct Database {
    rpc: Rpc,
}

impl Database {
    /// Connects to the server of this run directory.
    pub(crate) fn connect(place: &Place) -> Result<Self, OvsError> {
        Ok(Self { rpc: Rpc::connect(PEER, &place.database())? })
    }

    /// The same, without waiting longer than `limit`.
    pub(crate) fn connect_within(place: &Place, limit: Duration) -> Result<Self, OvsError> {
        Ok(Self { rpc: Rpc::connect_within(PEER, &place.database(), limit)? })
    }

    #[cfg(test)]
    /// The database's schema: `version`, and `tables` with their `columns`.
    pub(crate) fn schema(&mut self) -> Result<Value, OvsError> {
        self.rpc.call("get_schema", json!([NAME]), Bounds::USUAL)
    }

    /// Does these operations, all or none, and returns what came of each.
    pub(crate) fn transact(&mut self, operations: Vec<Value>) -> Result<Vec<Value>, OvsError> {
        let count = operations.len();
        let mut params = vec![json!(NAME)];
        params.extend(operations);
        let Value::Array(mut results) = self.rpc.call("transact", Value::Array(params), Bounds::USUAL)? else {
            return Err(self.rpc.garbage("transact", "no array of results".into()));
        };
        // One that fails ends the transaction: those behind it are null, and what fails at the end is one more.
        if let Some(error) = results.iter().find(|result| result["error"].is_string()) {
            return Err(OvsError::Refused { peer: PEER, method: "transact".into(), reason: words(error) });
        }
        if results.len() < count {
            let what = format!("{} results for {count} operations", results.len());
            return Err(self.rpc.garbage("transact", what));
        }
        results.truncate(count);
        Ok(results)
    }

    /// All rows of some tables, with these columns, as they are at one time. `_uuid` is always among them.
    pub(crate) fn select(&mut self, tables: &[(&str, &[&str])]) -> Result<Vec<Vec<Row>>, OvsError> {
        let operation = |(table, columns): &(&str, &[&str])| {
            let columns: Vec<&str> = std::iter::once("_uuid").chain(columns.iter().copied()).collect();
            json!({ "op": "select", "table": table, "where": [], "columns": columns })
        };
        let results = self.transact(tables.iter().map(operation).collect())?;
        let rows = |mut result: Value| match result["rows"].take() {
            Value::Array(rows) => Ok(rows.into_iter().map(Row::from).collect()),
            _ => Err(self.rpc.garbage("transact", "a select without rows".into())),
        };
        results.into_iter().map(rows).collect()
    }

    /// Asks to be told of changes in these columns, from now on. Servers that do not know `monitor_cond` (before OVS 2.6) are asked by `monitor`.
    pub(crate) fn watch(&mut self, tables: &[(&str, &[&str])], limit: Duration) -> Result<(), OvsError> {
        let bounds = Bounds { time: limit, ..Bounds::USUAL };
        let select = json!({ "initial": false, "insert": true, "delete": true, "modify": true });
        let requests = |array: bool| {
            let request = |columns: &[&str]| {
                let request = json!({ "columns": columns, "select": select });
                if array { json!([request]) } else { request }
            };
            tables.iter().map(|(table, columns)| ((*table).into(), request(columns))).collect::<Map<_, _>>()
        };
        match self.rpc.call("monitor_cond", json!([NAME, "ringspan", requests(true)]), bounds) {
            Err(OvsError::Refused { .. }) => {
                self.rpc.call("monitor", json!([NAME, "ringspan", requests(false)]), bounds).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Whether something was told while something else was asked: a wait for the connection would not see it.
    pub(crate) fn was_told(&self) -> bool {
        self.rpc.has_notes()
    }

    /// Whether something changed within `wait` that [`Database::watch`] asked for. Changes that are there already count once.
    pub(crate) fn changed(&mut self, wait: Duration) -> Result<bool, OvsError> {
        let is_change = |note: &Note| note.method.starts_with("update");
        let mut changed = match self.rpc.note(wait)? {
            None => return Ok(false),
            Some(note) => is_change(&note),
        };
        // A connection that ended meanwhile says so the next time; a peer that keeps telling is looked at again then.
        for _ in 0..AT_ONCE {
            let Ok(Some(note)) = self.rpc.note(Duration::from_micros(1)) else { break };
            changed |= is_change(&note);
        }
        Ok(changed)
    }
}

impl AsFd for Database {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rpc.as_fd()
    }
}

/// A row, whose values are read out of OVSDB's notation: a set of one is written as its element, a map as pairs.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row(Value);

impl From<Value> for Row {
    fn from(value: Value) -> Self {
        Self(value)
    }
}

impl Row {
    /// The row's identity.
    pub(crate) fn uuid(&self) -> &str {
        self.0["_uuid"][1].as_str().unwrap_or_default()
    }

    /// A text; empty when there is none.
    pub(crate) fn text(&self, column: &str) -> &str {
        self.0[column].as_str().unwrap_or_default()
    }

    /// A number, where there is one.
    pub(crate) fn number(&self, column: &str) -> Option<i64> {
        self.0[column].as_i64()
    }

    /// A map's value, where there is one.
    pub(crate) fn entry(&self, column: &str, key: &str) -> Option<&str> {
        let pairs = self.0[column][1].as_array()?;
        pairs.iter().find(|pair| pair[0] == key)?[1].as_str()
    }

    /// The rows that a set of references names.
    pub(crate) fn references(&self, column: &str) -> Vec<&str> {
        let value = &self.0[column];
        match value[0].as_str() {
            Some("uuid") => value[1].as_str().into_iter().collect(),
            Some("set") => value[1].as_array().into_iter().flatten().filter_map(|one| one[1].as_str()).collect(),
            _ => Vec::new(),
        }
    }
}
