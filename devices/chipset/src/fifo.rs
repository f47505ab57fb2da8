//! The receive FIFO of a serial port.

/// Characters with their error bits, at most `N`.
#[derive(Debug, Clone)]
pub(crate) struct Fifo<const N: usize> {
    slots: [u16; N],
    first: usize,
    len: usize,
}

impl<const N: usize> Fifo<N> {
    pub(crate) const fn new() -> Self {
        Self { slots: [0; N], first: 0, len: 0 }
    }

    /// The FIFO that holds `entries`, as far as they fit.
    pub(crate) fn of(entries: &[u16]) -> Self {
        let mut fifo = Self::new();
        for (slot, entry) in fifo.slots.iter_mut().zip(entries) {
            *slot = *entry;
            fifo.len += 1;
        }
        fifo
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Appends an entry, and says whether there was room.
    pub(crate) fn push(&mut self, entry: u16) -> bool {
        let room = self.len < N;
        if room {
            self.slots[(self.first + self.len) % N] = entry;
            self.len += 1;
        }
        room
    }

    pub(crate) fn pop(&mut self) -> Option<u16> {
        let entry = *self.front()?;
        self.first = (self.first + 1) % N;
        self.len -= 1;
        Some(entry)
    }

    pub(crate) fn front(&self) -> Option<&u16> {
        (self.len > 0).then(|| &self.slots[self.first])
    }

    pub(crate) fn front_mut(&mut self) -> Option<&mut u16> {
        (self.len > 0).then(|| &mut self.slots[self.first])
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = u16> + '_ {
        (0..self.len).map(|i| self.slots[(self.first + i) % N])
    }

    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }
}
