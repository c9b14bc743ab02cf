//! What a guest may rely on, and what a hostile one may not do.

mod driver;
mod hostile;
mod notify;
mod put;
mod take;
