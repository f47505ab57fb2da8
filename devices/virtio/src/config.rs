//! A device's configuration space as bytes.

/// A number of a configuration structure, little-endian (section 2.5.3).
pub(crate) trait Field {
    /// Its bytes, and how many of them it has.
    fn bytes(self) -> ([u8; 8], usize);
}

macro_rules! fields {
    ($($number:ty),*) => {$(
        impl Field for $number {
            fn bytes(self) -> ([u8; 8], usize) {
                (u64::from(self).to_le_bytes(), size_of::<Self>())
            }
        }
    )*};
}
fields!(u8, u16, u32, u64);

/// A configuration structure of `N` bytes.
pub(crate) struct ConfigSpace<const N: usize>([u8; N]);

impl<const N: usize> ConfigSpace<N> {
    pub(crate) fn new() -> Self {
        Self([0; N])
    }

    /// Sets a field; what would lie beyond the end is left out.
    pub(crate) fn put(&mut self, offset: usize, field: impl Field) {
        let (bytes, width) = field.bytes();
        for (place, byte) in self.0.iter_mut().skip(offset).zip(bytes.into_iter().take(width)) {
            *place = byte;
        }
    }

    pub(crate) fn bytes(&self) -> &[u8; N] {
        &self.0
    }

    /// Reads at `offset`; what lies beyond the end is left as it is.
    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (byte, value) in data.iter_mut().zip(self.0.iter().skip(offset)) {
            *byte = *value;
        }
    }
}
