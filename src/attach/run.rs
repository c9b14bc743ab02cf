//! The steps of attachments, done and taken back, each written down before it is begun.
//!
//! A step that fails leaves nothing behind by itself. One that was begun when the daemon was killed may have been done or not: it is taken back
//! all the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use super::guest::{Qmp, still_to_unplug};
use super::record::{Counted, Key, Record, Stage, Step};
use super::request::Mode;
use crate::error::{Error, ErrorKind};
use crate::state::StateDir;

/// Longest wait for somebody else who works on the same attachment: longer than a lane may take for a device.
const PATIENCE: Duration = Duration::from_secs(80);

/// What the steps are done to.
pub(crate) trait World {
    /// Does a step, all of it or nothing. What is so already is left alone. What is learnt goes into the record.
    fn apply(&self, step: Step, record: &mut Record) -> Result<Vec<String>, Error>;
    /// Takes a step back. What is not there (any more) needs nothing.
    fn undo(&self, step: Step, record: &Record) -> Result<(), Error>;
    /// What differs from how the step left it.
    fn drift(&self, step: Step, record: &Record) -> Result<Option<String>, Error>;
    /// Who still has the VF or its port, so that its guest was not seen to let go of it. An error: who would know cannot be asked, and its guest may
    /// have it or not.
    fn user(&self, record: &Record) -> Result<Option<String>, Error>;
    /// The port, or the NIC, that has claimed the VF, or is about to, and is no attachment's. Is asked while nothing can be written down, so that
    /// it must not ask for attachments.
    fn claimed(&self, record: &Record) -> Option<String>;
}

/// Why something did not end.
#[derive(Debug)]
pub(super) enum Halt {
    /// It failed, and was tidied up.
    Failed(Error),
    /// As if the daemon had been killed here. Tests only.
    #[cfg(test)]
    Killed,
}

impl From<Error> for Halt {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl From<Halt> for Error {
    fn from(halt: Halt) -> Self {
        match halt {
            Halt::Failed(error) => error,
            #[cfg(test)]
            Halt::Killed => Self::new(ErrorKind::Cancelled, "the daemon was killed here"),
        }
    }
}

/// Whether its guest has all of it. Of what was not made whole, or is being taken back, it is written down that it goes.
fn whole(record: &Record) -> bool {
    matches!(record.stage, Stage::Attached | Stage::Changing)
}

/// Why what its guest has is not taken away.
fn in_use(record: &Record, user: &str) -> Result<Error, Error> {
    let key = record.key();
    let steps: Vec<String> = still_to_unplug(record)?.iter().map(Qmp::to_string).collect();
    let handed_over = record.wanted.mode == Mode::Passthrough;
    let or = if handed_over { "" } else { ", or say --disturb: it is taken away from the guest then" };
    let message = format!(
        "{key}: {user}: unplug it from the guest (over QMP {}; what was done already is left out), or stop that guest first{or}",
        steps.join(", ")
    );
    Ok(Error::new(ErrorKind::Busy, message).about(&key))
}

/// Why what its guest may have is not taken away.
fn unknown_use(record: &Record, why: &Error) -> Error {
    let key = record.key();
    let message = format!(
        "{key}: it is not known whether its guest is connected ({}): try again when its lane is up (ringspan lane list), or, if that guest is gone, say --disturb: from one that runs it is taken away then",
        why.message
    );
    Error::new(ErrorKind::Busy, message).about(&key)
}

#[derive(Default)]
struct Table {
    records: BTreeMap<Key, Record>,
    /// What was last counted of each, and what had been counted before its source began anew.
    counted: BTreeMap<Key, (Counted, Counted)>,
    /// Those that somebody works on.
    taken: BTreeSet<Key>,
}

/// All attachments of this host.
pub(crate) struct Attachments {
    state: Arc<StateDir>,
    table: Mutex<Table>,
    /// Held while counters are read and folded in: of two who read, the one that read first also folds first. Taken before `table`.
    metering: Mutex<()>,
    freed: Condvar,
    /// How many more points are passed before the daemon is "killed".
    #[cfg(test)]
    fuse: Mutex<Option<usize>>,
}

/// The right to work on one attachment, until it is dropped.
pub(crate) struct Claim<'a> {
    all: &'a Attachments,
    key: Key,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.all.locked().taken.remove(&self.key);
        self.all.freed.notify_all();
    }
}

impl Attachments {
    /// Those that are written down.
    pub(crate) fn load(state: Arc<StateDir>) -> Result<Self, Error> {
        let records = state.load_attachments()?.into_iter().map(|record| (record.key(), record)).collect();
        Ok(Self {
            table: Mutex::new(Table { records, counted: state.load_counted(), taken: BTreeSet::new() }),
            state,
            metering: Mutex::new(()),
            freed: Condvar::new(),
            #[cfg(test)]
            fuse: Mutex::new(None),
        })
    }

    fn locked(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub(crate) fn all(&self) -> Vec<Record> {
        self.locked().records.values().cloned().collect()
    }

    /// One of them.
    pub(crate) fn get(&self, key: &Key) -> Option<Record> {
        self.locked().records.get(key).cloned()
    }

    /// What the NICs of a guest (of all, without one) counted all together, and whether that is of now. `read` asks a NIC's source; where
    /// that begins anew, because a port was made again, what it had said before is added. One that is detached meanwhile is left out.
    pub(crate) fn count<S>(
        &self,
        guest: Option<&str>,
        read: impl Fn(&Record) -> (Option<Counted>, S),
    ) -> Vec<(Record, bool, S, Counted)> {
        let _one = self.metering.lock().unwrap_or_else(PoisonError::into_inner);
        // Read without the table: a lane or a file in sysfs may let us wait.
        let chosen = self.all().into_iter().filter(|record| guest.is_none_or(|guest| guest == record.wanted.guest));
        let told: Vec<_> = chosen.map(|record| (read(&record), record)).collect();
        let mut table = self.locked();
        let before = table.counted.clone();
        let mut all = vec![];
        for ((now, source), record) in told {
            let key = record.key();
            if !table.records.contains_key(&key) {
                continue;
            }
            let (mut last, mut earlier) = table.counted.get(&key).copied().unwrap_or_default();
            if let Some(now) = now {
                if !now.follows(&last) {
                    earlier = earlier.plus(&last);
                }
                last = now;
                table.counted.insert(key, (last, earlier));
            }
            all.push((record, now.is_some(), source, earlier.plus(&last)));
        }
        if table.counted != before {
            // Not worth a refusal: it is written down again with the next question.
            let _ = self.state.save_counted(&table.counted);
        }
        all
    }

    /// Those that were left half-done, and that nobody works on.
    pub(crate) fn unfinished(&self) -> Vec<Key> {
        let table = self.locked();
        let left = table.records.values().filter(|record| record.stage != Stage::Attached).map(Record::key);
        left.filter(|key| !table.taken.contains(key)).collect()
    }

    /// The right to work on one; waits for whoever has it.
    pub(crate) fn claim(&self, key: &Key) -> Result<Claim<'_>, Error> {
        let busy = |table: &mut Table| table.taken.contains(key);
        let (mut table, _) =
            self.freed.wait_timeout_while(self.locked(), PATIENCE, busy).unwrap_or_else(PoisonError::into_inner);
        if !table.taken.insert(key.clone()) {
            let message =
                format!("{key} is being attached or detached by another request: try again when that has ended");
            return Err(Error::new(ErrorKind::Busy, message).about(key));
        }
        Ok(Claim { all: self, key: key.clone() })
    }

    /// Behaves from so many points on as if the daemon had been killed there.
    #[cfg(test)]
    pub(crate) fn kill_at(&self, point: usize) {
        *self.fuse.lock().unwrap_or_else(PoisonError::into_inner) = Some(point);
    }

    /// A place at which a daemon may be killed.
    fn point(&self) -> Result<(), Halt> {
        #[cfg(test)]
        if let Some(left) = self.fuse.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            if *left == 0 {
                return Err(Halt::Killed);
            }
            *left -= 1;
        }
        Ok(())
    }

    /// Writes a record down in place of the one with its key, or takes that away.
    fn write(&self, key: &Key, record: Option<&Record>) -> Result<(), Halt> {
        self.point()?;
        // What is being read of it would be the next one's of that name.
        let _metering = record.is_none().then(|| self.metering.lock().unwrap_or_else(PoisonError::into_inner));
        let mut table = self.locked();
        let before = match record {
            Some(record) => table.records.insert(key.clone(), record.clone()),
            None => table.records.remove(key),
        };
        let list: Vec<Record> = table.records.values().cloned().collect();
        if let Err(error) = self.state.save_attachments(&list) {
            match before {
                Some(before) => table.records.insert(key.clone(), before),
                None => table.records.remove(key),
            };
            return Err(error.into());
        }
        if record.is_none() && table.counted.remove(key).is_some() {
            // The next one of that name counts from the start.
            let _ = self.state.save_counted(&table.counted);
        }
        drop(table);
        self.point()
    }

    /// Writes a new record down; `choose` is given all that there are, and makes it. That may take long, so nobody waits for it. Of two who
    /// chose the same VF the first one to write it down gets it, and the other one chooses again. So does one whose VF a port has claimed
    /// meanwhile: a port claims it first and then looks for a record of it.
    pub(super) fn reserve(
        &self,
        world: &impl World,
        choose: impl Fn(&[Record]) -> Result<Record, Error>,
    ) -> Result<Record, Halt> {
        self.point()?;
        let record = loop {
            let known = self.all();
            let record = choose(&known)?;
            if let Some(user) = known.iter().find(|other| other.target == record.target) {
                let message = format!("{} is not free: {} has it", record.target, user.key());
                return Err(Error::new(ErrorKind::Busy, message).about(record.key()).into());
            }
            let mut table = self.locked();
            let taken = table.records.values().any(|other| other.target == record.target);
            if taken || world.claimed(&record).is_some() {
                continue;
            }
            let list: Vec<Record> = table.records.values().chain([&record]).cloned().collect();
            self.state.save_attachments(&list)?;
            table.records.insert(record.key(), record.clone());
            break record;
        };
        self.point()?;
        Ok(record)
    }

    /// Does the steps of a new record. When one fails, what was done is taken back.
    pub(super) fn carry_out(&self, world: &impl World, mut record: Record) -> Result<(Record, Vec<String>), Halt> {
        let error = match self.begin(world, &mut record) {
            Ok(done) => return Ok((record, done)),
            Err(Halt::Failed(error)) => error,
            #[cfg(test)]
            Err(killed) => return Err(killed),
        };
        let key = record.key();
        // The step that failed too: it may have left something, and taking back what is not there is nothing.
        Err(match self.take_back(world, record) {
            Ok(()) => error.about(&key).into(),
            Err(Halt::Failed(why)) => {
                let message = format!("{}; left: {}", error.message, why.message);
                Halt::Failed(Error { message, ..error }.about(&key))
            }
            #[cfg(test)]
            Err(killed) => killed,
        })
    }

    fn begin(&self, world: &impl World, record: &mut Record) -> Result<Vec<String>, Halt> {
        let (key, mut done) = (record.key(), vec![]);
        for step in record.steps.clone() {
            record.begun.push(step);
            self.write(&key, Some(record))?;
            done.extend(world.apply(step, record)?);
            self.point()?;
        }
        let whole = Record { stage: Stage::Attached, problem: None, ..record.clone() };
        self.write(&key, Some(&whole))?;
        *record = whole;
        Ok(done)
    }

    /// Does the steps of an attachment again, those that differ and those that a change is about.
    pub(super) fn do_again(&self, world: &impl World, mut record: Record) -> Result<(Record, Vec<String>), Halt> {
        let (key, mut done) = (record.key(), vec![]);
        record.stage = Stage::Changing;
        self.write(&key, Some(&record))?;
        for step in record.steps.clone() {
            if !record.begun.contains(&step) {
                record.begun.push(step);
                self.write(&key, Some(&record))?;
            }
            match world.apply(step, &mut record) {
                Ok(what) => done.extend(what),
                Err(error) => {
                    record.problem = Some(error.message.clone());
                    self.write(&key, Some(&record))?;
                    return Err(error.about(&key).into());
                }
            }
            self.point()?;
        }
        record.stage = Stage::Attached;
        record.problem = None;
        self.write(&key, Some(&record))?;
        Ok((record, done))
    }

    /// Takes back what was begun, last first, and forgets the record. What cannot be taken back stays written down, with the reason.
    pub(super) fn take_back(&self, world: &impl World, mut record: Record) -> Result<(), Halt> {
        let key = record.key();
        match std::mem::replace(&mut record.stage, Stage::Detaching) {
            Stage::Detaching => (),
            // What is written down leads here again: where no more can be written, it is taken back all the same.
            Stage::Attaching => self.write_if_possible(&key, &record)?,
            Stage::Attached | Stage::Changing => self.write(&key, Some(&record))?,
        }
        while let Some(step) = record.begun.last().copied() {
            if let Err(error) = world.undo(step, &record) {
                record.problem = Some(error.message.clone());
                self.write_if_possible(&key, &record)?;
                return Err(error.about(&key).into());
            }
            self.point()?;
            record.begun.pop();
            if !record.begun.is_empty() {
                self.write_if_possible(&key, &record)?;
            }
        }
        self.write(&key, None)
    }

    /// Writes down what need not be: what is written down already leads to the same end.
    fn write_if_possible(&self, key: &Key, record: &Record) -> Result<(), Halt> {
        match self.write(key, Some(record)) {
            Err(Halt::Failed(error)) => {
                tracing::warn!("{key}: {error}");
                Ok(())
            }
            written => written,
        }
    }

    /// Attaches. One that is there and is the same is a success. `plan` is given the other records, and chooses the VF.
    pub(crate) fn attach(
        &self,
        world: &impl World,
        wanted: &super::Attach,
        plan: impl Fn(&[Record]) -> Result<Record, Error>,
    ) -> Result<(Record, Vec<String>), Error> {
        let key = Key { guest: wanted.guest.clone(), nic: wanted.nic };
        let _claim = self.claim(&key)?;
        if let Some(there) = self.get(&key) {
            if there.stage == Stage::Attached || there.stage == Stage::Changing {
                if there.wanted != *wanted {
                    let message = format!(
                        "{key} is attached already, and not the same: detach it first, or change it (port set)"
                    );
                    return Err(Error::new(ErrorKind::Exists, message).about(&key));
                }
                return match there.stage {
                    Stage::Attached => Ok((there, vec![])),
                    _ => Ok(self.do_again(world, there)?),
                };
            }
            // What an earlier daemon left, and could not take back then.
            self.take_back(world, there)?;
        }
        let record = self.reserve(world, plan)?;
        Ok(self.carry_out(world, record)?)
    }

    /// Detaches. One that is not there is a success: false. What its guest still has, or may have, is refused; with `disturb` it is taken away all the same,
    /// unless it was handed over: the kernel would wait for the guest. What was being taken back already waits for nobody's answer.
    pub(crate) fn detach(&self, world: &impl World, key: &Key, disturb: bool) -> Result<bool, Error> {
        let _claim = self.claim(key)?;
        let Some(record) = self.get(key) else { return Ok(false) };
        let handed_over = record.wanted.mode == Mode::Passthrough;
        if handed_over || !disturb {
            match world.user(&record) {
                Ok(Some(user)) => return Err(in_use(&record, &user)?),
                Err(why) if whole(&record) => return Err(unknown_use(&record, &why)),
                Ok(None) | Err(_) => {}
            }
        }
        self.take_back(world, record)?;
        Ok(true)
    }

    /// Changes what is wanted of an attachment, and does what follows.
    pub(crate) fn change(
        &self,
        world: &impl World,
        key: &Key,
        change: impl FnOnce(&mut Record) -> Result<(), Error>,
    ) -> Result<(Record, Vec<String>), Error> {
        let _claim = self.claim(key)?;
        let Some(mut record) = self.get(key).filter(|record| matches!(record.stage, Stage::Attached | Stage::Changing))
        else {
            let message = format!("{key} is not attached: see ringspan attachment list");
            return Err(Error::new(ErrorKind::NotFound, message).about(key));
        };
        let mut before = record.clone();
        change(&mut record)?;
        // What is taken back had perhaps come into the NIC.
        before.rated = record.rated;
        match self.do_again(world, record) {
            Ok(changed) => Ok(changed),
            Err(Halt::Failed(error)) => {
                // As it was, as far as it can be.
                let Err(why) = self.do_again(world, before) else { return Err(error) };
                let message = format!("{}; left: {}", error.message, Error::from(why).message);
                Err(Error { message, ..error })
            }
            #[cfg(test)]
            Err(killed) => Err(killed.into()),
        }
    }

    /// Finishes or takes back what was left half-done.
    pub(crate) fn recover(&self, world: &impl World, key: &Key) -> Result<(), Error> {
        let _claim = self.claim(key)?;
        let Some(record) = self.get(key) else { return Ok(()) };
        match record.stage {
            Stage::Attached => Ok(()),
            Stage::Changing => Ok(self.do_again(world, record).map(drop)?),
            Stage::Attaching | Stage::Detaching => Ok(self.take_back(world, record)?),
        }
    }
}
