//! A data structure that a command returns.

/// Bytes, filled by offsets as the specification's tables give them. What is not set is 0.
pub(crate) struct Page {
    bytes: Vec<u8>,
}

impl Page {
    /// What Identify returns.
    pub(crate) const SIZE: usize = 4096;

    /// `len` zeroes; a constant of the specification.
    pub(crate) fn new(len: usize) -> Self {
        Self { bytes: vec![0; len] }
    }

    pub(crate) fn put(&mut self, offset: usize, bytes: &[u8]) {
        let room = self.bytes.get_mut(offset..offset + bytes.len()).expect("an offset of the specification's");
        room.copy_from_slice(bytes);
    }

    pub(crate) fn put8(&mut self, offset: usize, value: u8) {
        self.put(offset, &[value]);
    }

    pub(crate) fn put16(&mut self, offset: usize, value: u16) {
        self.put(offset, &value.to_le_bytes());
    }

    pub(crate) fn put32(&mut self, offset: usize, value: u32) {
        self.put(offset, &value.to_le_bytes());
    }

    pub(crate) fn put64(&mut self, offset: usize, value: u64) {
        self.put(offset, &value.to_le_bytes());
    }

    pub(crate) fn put128(&mut self, offset: usize, value: u128) {
        self.put(offset, &value.to_le_bytes());
    }

    /// ASCII, cut or padded with spaces to `len`.
    pub(crate) fn put_text(&mut self, offset: usize, len: usize, text: &str) {
        let mut bytes = vec![b' '; len];
        let graphic = text.bytes().map(|byte| if (0x20..0x7f).contains(&byte) { byte } else { b'?' });
        bytes.iter_mut().zip(graphic).for_each(|(room, byte)| *room = byte);
        self.put(offset, &bytes);
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}
