//! What IN_ORDER lets a device leave out: Virtio 1.2, sections 2.7.9 and 2.8.13.
//!
//! Of several chains that are used together the device may write one element only, where that of the first would be, with
//! the name of the last. The driver knows the order, and so the others: they were used completely.

use std::collections::VecDeque;

/// A chain that is with the back-end.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// What the device calls it.
    pub name: u16,
    /// The buffer's number.
    pub buffer: u16,
    /// Descriptors in the ring.
    pub descriptors: u16,
    /// Bytes that the device may write to it.
    pub writable: u32,
}

/// The chains that are with the back-end, in the order in which it uses them.
#[derive(Debug, Default)]
pub struct Order {
    chains: VecDeque<Chain>,
    /// Chains from the front that are used by an element that was read, and the length that it said of the last.
    used: usize,
    last_length: u32,
}

impl Order {
    /// The back-end gets one more.
    pub fn push(&mut self, chain: Chain) {
        self.chains.push_back(chain);
    }

    /// Whether chains are used by an element that was read before.
    pub fn has_used(&self) -> bool {
        self.used > 0
    }

    /// Chains that an element of this name stands for, if the back-end has a chain of that name.
    pub fn count(&self, name: u16) -> Option<usize> {
        self.chains.iter().position(|chain| chain.name == name).map(|at| at + 1)
    }

    /// An element was read: whether it names a chain that the back-end has, no more than `most` from the first.
    pub fn read(&mut self, name: u32, length: u32, most: usize) -> bool {
        let count = u16::try_from(name).ok().and_then(|name| self.count(name)).filter(|&count| count <= most);
        (self.used, self.last_length) = (count.unwrap_or(0), length);
        count.is_some()
    }

    /// Takes the first used chain, and the bytes that the device wrote to it.
    pub fn take(&mut self) -> Option<(Chain, u32)> {
        self.used = self.used.checked_sub(1)?;
        let chain = self.chains.pop_front()?;
        Some((chain, if self.used == 0 { self.last_length } else { chain.writable }))
    }

    /// Chains that are used by elements read before.
    pub fn waiting(&self) -> usize {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_element_stands_for_all_up_to_its_chain() {
        let mut order = Order::default();
        for name in [7, 3, 9, 1] {
            order.push(Chain { name, buffer: name + 10, descriptors: 1, writable: 100 });
        }
        assert!(!order.read(8, 5, 4), "nobody's name");
        assert!(!order.read(9, 5, 2), "more than there can be");
        assert!(order.read(9, 5, 4));
        let taken: Vec<_> = std::iter::from_fn(|| order.take()).map(|(chain, length)| (chain.buffer, length)).collect();
        assert_eq!(taken, [(17, 100), (13, 100), (19, 5)]);
        assert!(order.read(1, 60, 4));
        assert_eq!(order.take().map(|(chain, length)| (chain.buffer, length)), Some((11, 60)));
        assert!(order.take().is_none());
    }
}
