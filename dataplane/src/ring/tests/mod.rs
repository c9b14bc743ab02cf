//! What a guest may rely on, and what a hostile one may not do.

mod chaos;
mod driver;
mod hostile;
mod mock;
mod model;
mod notify;
mod put;
mod reference;
mod take;
