//! `docs/control-api.md`, written from the table of methods and the types.
